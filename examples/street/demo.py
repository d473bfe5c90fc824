"""`make demo`: merge the two models of this example and look at streets neither of them knows.

    .venv/bin/python examples/street/demo.py [--output demo] [--scenes 100]

The anchor was trained by day, the donor by rainy night and with other labels. The scenes here are
drawn at dusk, from a seed that no training used. Writes `merged/` with its card, and `street.png`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from measure import FIRST_SEED, Models, Scores, draw, load, merged, predict, scores
from transformers.utils import logging
from world.labels import CITY, Image8
from world.looks import DOMAINS
from world.scenes import HEIGHT, WIDTH

import lwmm_hub as lw

HERE = Path(__file__).parent
SHOWN = 4  # the first scenes of the test set, not chosen ones
COLOURS = {  # Cityscapes' colours
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "vegetation": (107, 142, 35),
    "sky": (70, 130, 180),
    "car": (0, 0, 142),
    "person": (220, 20, 60),
    "pole": (220, 220, 0),
}
PALETTE = np.array([COLOURS[name] for name in CITY.classes], np.uint8)
TITLES = {"anchor": "anchor (day)", "donor": "donor (night)", "layer-wise": "merged, layer-wise"}


def picture(images: Image8, truth: Image8, predictions: dict[str, Image8]) -> Figure:
    """Rows of image, truth and each model's prediction, with a legend of the classes below."""
    columns = {"street at dusk": images, "truth": PALETTE[truth]}
    columns |= {TITLES[name]: PALETTE[predictions[name]] for name in TITLES}
    rows, wide = len(images), 2.4
    high = wide * HEIGHT / WIDTH
    figure = Figure(figsize=(wide * len(columns), (high + 0.22) * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, tiles) in enumerate(columns.items()):
        panels[0, column].set_title(title, fontsize=12, fontweight="bold")
        for row, tile in enumerate(tiles):
            panels[row, column].imshow(tile, interpolation="nearest")
            panels[row, column].set(xticks=[], yticks=[])
            panels[row, column].spines[:].set_visible(False)
    for column, name in enumerate(TITLES, start=2):
        for row in range(rows):
            share = scores(truth[row], predictions[name][row]).accuracy
            panels[row, column].set_xlabel(f"{share:.0f} % of pixels right", fontsize=9)
    patches = [Patch(color=np.array(COLOURS[name]) / 255, label=name) for name in CITY.classes]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=10
    )
    return figure


def table(found: dict[str, Scores]) -> str:
    lines = [f"{'':12}{'pixel accuracy':>16}{'mIoU':>10}"]
    lines += [f"{name:12}{one.accuracy:14.1f} %{one.miou:8.1f} %" for name, one in found.items()]
    return "\n".join(lines)


def models_of(output: Path) -> Models:
    """Both parents and both merges; the layer-wise one stays in `output`, the other does not."""
    plan = lw.plan(str(HERE / "anchor"), str(HERE / "donor"), check_weights=True)
    print(plan, end="\n\n")
    layer_wise = lw.merge(plan, output=output / "merged", overwrite=True)
    with tempfile.TemporaryDirectory() as scratch:
        isotropic = merged(Path(scratch) / "isotropic", "isotropic")
    return {
        "anchor": load(HERE / "anchor"),
        "donor": load(HERE / "donor"),
        "isotropic": isotropic,
        "layer-wise": layer_wise.load().eval(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument("--scenes", type=int, default=100, help="streets to measure on")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    models = models_of(output)
    images, truth = draw(DOMAINS["dusk"], arguments.scenes, FIRST_SEED)
    predictions = {name: predict(model, images) for name, model in models.items()}
    shown = {name: found[:SHOWN] for name, found in predictions.items()}
    picture(images[:SHOWN], truth[:SHOWN], shown).savefig(output / "street.png", dpi=110)
    print(f"{arguments.scenes} streets at dusk, which neither model was trained on,")
    print("in the anchor's label set:\n")
    print(table({name: scores(truth, found) for name, found in predictions.items()}))
    print(f"\nmodel    {output / 'merged'}")
    print(f"card     {output / 'merged' / 'README.md'}")
    print(f"picture  {output / 'street.png'}")


if __name__ == "__main__":
    main()
