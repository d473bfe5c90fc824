"""`make demo`: merge the two models of this example and look at streets neither of them knows.

    .venv/bin/python examples/street/demo.py [--output demo] [--scenes 100] [--readme README.md]

The anchor was trained by day, the donor by rainy night and with other labels. The scenes here are
drawn at dusk, from a seed that no training used. Writes `merged/` and `fitted/` with their cards,
and `street.png`. The layer weights of `fitted/` are learned from other scenes at dusk, without
their labels. `--readme` puts the figures into the table of that file, and two rows of the picture
into `examples/street/dusk.png` beside it.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
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
FIT_SEED = 3001  # of the scenes that layer weights are fitted on: no training, no table has it
FIT_SCENES = 40
COLUMNS = ("anchor", "donor", "isotropic", "ensemble (2 inferences)", "layer-wise", "fitted")


def report(models: dict[str, Model], data: DataSet) -> Report:
    """Every model on the same scenes, the anchor first; a single pass each times nothing."""
    untimed = {"images_per_second": None, "peak_memory_mb": None}
    scores = [replace(score(model, data), **untimed) for model in models.values()]
    return Report(describe_data(data, scores[0].images), tuple(models), tuple(scores))


def picture(models: dict[str, Model], data: DataSet, rows: int = SHOWN) -> Image.Image:
    """Rows of image, truth and each model's prediction."""
    shown = list(islice(data.samples(0, 1), rows))
    images = [sample.image for sample in shown]
    maps = {}
    for name, model in models.items():
        found = subject(model, data).predict(images, "semantic")
        maps[name] = [one.semantic for one in found if one.semantic is not None]
    return draw_overlay(shown, maps, data.space)


def fitted(plan: lw.MergePlan) -> lw.MergePlan:
    """The plan with layer weights that were learned from unlabelled streets at dusk."""
    scenes = draw(DOMAINS["dusk"], FIT_SCENES, FIT_SEED, "unlabelled streets at dusk")
    return lw.fit_layer_weights(plan, scenes, states="")


def readme_table(found: Report) -> str:
    """The table of the README."""
    rows = [[f"{found.dataset['images']} {found.dataset['reference']}", *COLUMNS]]
    for title, name in (("pixel accuracy", "pixel_accuracy"), ("mIoU", "miou")):
        rows.append([title, *(f"{100 * getattr(scores, name):.1f} %" for scores in found.scores)])
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def put_table(found: Report, readme: Path) -> None:
    """Replace the table of a README by one of these figures."""
    text = readme.read_text("utf-8")
    table = re.compile(rf"\| \d+ {found.dataset['reference']} \|.*\n(?:\|.*\n)+")
    changed, number = table.subn(f"{readme_table(found)}\n", text)
    if number != 1:
        raise SystemExit(f"{readme} has {number} tables of {found.dataset['reference']}, not one.")
    readme.write_text(changed, "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument("--scenes", type=int, default=100, help="streets to measure on")
    parser.add_argument("--readme", type=Path, help="put the figures into this file's table")
    asked = parser.parse_args(arguments)
    logging.disable_progress_bar()
    output: Path = asked.output
    output.mkdir(parents=True, exist_ok=True)
    plan = lw.plan(*map(str, PARENTS), check_weights=True)
    print(plan, end="\n\n")
    lw.merge(plan, output=output / "merged", overwrite=True)
    told = f"fitting layer weights on {FIT_SCENES} other streets at dusk, without labels"
    print(told, end="\n\n", flush=True)
    lw.merge(fitted(plan), output=output / "fitted", overwrite=True)
    data = draw(DOMAINS["dusk"], asked.scenes, FIRST_SEED, "streets at dusk")
    with tempfile.TemporaryDirectory() as scratch:
        models: dict[str, Model] = {
            "anchor": PARENTS[0],
            "donor": PARENTS[1],
            "isotropic": merged(Path(scratch) / "isotropic", "isotropic"),
            "ensemble": PARENTS,
            "layer-wise": output / "merged",
            "fitted": output / "fitted",
        }
        print(f"{asked.scenes} streets at dusk, which neither model was trained on,")
        print("in the anchor's label set; the ensemble costs two inferences:\n")
        found = report(models, data)
        print(found)
        columns = ("anchor", "donor", "layer-wise", "fitted")
        picture({name: models[name] for name in columns}, data).save(output / "street.png")
        if asked.readme is not None:
            put_table(found, asked.readme)
            small = picture({name: models[name] for name in columns[:3]}, data, rows=2)
            place = asked.readme.parent / "examples" / "street" / "dusk.png"
            small.quantize(200).save(place, optimize=True)
    print(f"\nmodels   {output / 'merged'}, {output / 'fitted'}")
    print(f"cards    {output / 'merged' / 'README.md'}, {output / 'fitted' / 'README.md'}")
    print(f"picture  {output / 'street.png'}")


if __name__ == "__main__":
    main()
