"""`make demo`: merge the two models of this example and look at streets neither of them knows.

    .venv/bin/python examples/street/demo.py [--output demo] [--scenes 100]

The anchor was trained by day, the donor by rainy night and with other labels. The scenes here are
drawn at dusk, from a seed that no training used. Writes `merged/` with its card, and `street.png`.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import islice
from pathlib import Path

from measure import FIRST_SEED, PARENTS, draw, merged
from PIL import Image
from transformers.utils import logging
from world.looks import DOMAINS
from world.scoring import Model, score, subject

import lwmm_hub as lw
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.overlays import draw_overlay
from lwmm_hub.evaluation.reporting import Report, describe_data

SHOWN = 4  # the first scenes of the test set, not chosen ones


def report(models: dict[str, Model], data: DataSet) -> Report:
    """Every model on the same scenes, the anchor first."""
    scores = [score(model, data) for model in models.values()]
    return Report(describe_data(data, scores[0].images), tuple(models), tuple(scores))


def picture(models: dict[str, Model], data: DataSet) -> Image.Image:
    """Rows of image, truth and each model's prediction."""
    shown = list(islice(data.samples(0, 1), SHOWN))
    images = [sample.image for sample in shown]
    maps = {}
    for name, model in models.items():
        found = subject(model, data).predict(images, "semantic")
        maps[name] = [one.semantic for one in found if one.semantic is not None]
    return draw_overlay(shown, maps, data.space)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument("--scenes", type=int, default=100, help="streets to measure on")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    plan = lw.plan(*map(str, PARENTS), check_weights=True)
    print(plan, end="\n\n")
    lw.merge(plan, output=output / "merged", overwrite=True)
    data = draw(DOMAINS["dusk"], arguments.scenes, FIRST_SEED, "streets at dusk")
    with tempfile.TemporaryDirectory() as scratch:
        models: dict[str, Model] = {
            "anchor": PARENTS[0],
            "donor": PARENTS[1],
            "isotropic": merged(Path(scratch) / "isotropic", "isotropic"),
            "ensemble": PARENTS,
            "layer-wise": output / "merged",
        }
        print(f"{arguments.scenes} streets at dusk, which neither model was trained on,")
        print("in the anchor's label set; the ensemble costs two inferences:\n")
        print(report(models, data))
        columns = ("anchor", "donor", "layer-wise")
        picture({name: models[name] for name in columns}, data).save(output / "street.png")
    print(f"\nmodel    {output / 'merged'}")
    print(f"card     {output / 'merged' / 'README.md'}")
    print(f"picture  {output / 'street.png'}")


if __name__ == "__main__":
    main()
