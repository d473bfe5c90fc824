"""Measure anchor, donor and their merges on streets at dusk, which no model was trained on.

    .venv/bin/python examples/street/measure.py [--seeds 5] [--scenes 200]

Everything is read in the anchor's label set: the ground truth and the donor's labels by name, and
where the anchor has no such name by `world.labels.COARSER`. Nothing is left out of the count.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
from transformers import (
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
    SegformerImageProcessorPil,
)
from transformers.utils import logging
from world.labels import CITY, THINGS, Image8
from world.looks import DOMAINS, Domain, towards_night
from world.scenes import HEIGHT, WIDTH, scenes

HERE = Path(__file__).parent
FIRST_SEED = 2001  # 1 to 3 drew the training scenes, 1001 and 1002 those for choosing the design
Models = Mapping[str, PreTrainedModel]


class Scores(NamedTuple):
    """Pixel accuracy and mean intersection over union, in percent."""

    accuracy: float
    miou: float


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForSemanticSegmentation.from_pretrained(folder).eval()


def pixels_of(images: Image8) -> torch.Tensor:
    """The images as the models' image processor prepares them, (n, 3, height, width)."""
    processor = SegformerImageProcessorPil(size={"height": HEIGHT, "width": WIDTH})
    return processor(list(images), return_tensors="pt")["pixel_values"]


@torch.inference_mode()
def predict(model: PreTrainedModel, images: Image8) -> Image8:
    """The class of each pixel in the anchor's label set, (n, height, width)."""
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    found = [
        functional.interpolate(model(batch).logits, size=(HEIGHT, WIDTH), mode="bilinear").argmax(1)
        for batch in pixels_of(images).split(25)
    ]
    return CITY.lookup(names)[torch.cat(found).numpy()]


def scores(truth: Image8, predicted: Image8) -> Scores:
    """Both scores from one confusion matrix over all pixels of all scenes."""
    size = len(CITY.classes)
    pairs = truth.astype(np.intp).ravel() * size + predicted.ravel()
    counts = np.bincount(pairs, minlength=size * size).reshape(size, size)
    right = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - right
    seen = union > 0
    accuracy, miou = right.sum() / counts.sum(), (right[seen] / union[seen]).mean()
    return Scores(100 * float(accuracy), 100 * float(miou))


def draw(domain: Domain, count: int, seed: int) -> tuple[Image8, Image8]:
    """Images and ground truth in the anchor's label set."""
    images, things = scenes(domain, count, seed)
    return images, CITY.lookup(THINGS)[things]


def seed_table(models: Models, name: str, count: int, seeds: Sequence[int]) -> str:
    """A row for each model, a column for each set of scenes, and their mean."""
    drawn = [draw(DOMAINS[name], count, seed) for seed in seeds]
    rows = [[f"{name}, {count} scenes each", *(f"seed {seed}" for seed in seeds), "mean"]]
    for model_name, model in models.items():
        found = [scores(truth, predict(model, images)) for images, truth in drawn]
        found.append(Scores(*np.mean(found, axis=0).tolist()))
        rows.append([model_name, *(f"{one.accuracy:.1f} / {one.miou:.1f}" for one in found)])
    return markdown(rows)


def way_table(models: Models, count: int, seed: int) -> str:
    """A row for each model, a column for each stop on the way from day to night."""
    stops = [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]
    drawn = [draw(towards_night(stop, stop), count, seed) for stop in stops]
    rows = [["way from day to night", *(f"{stop:.1f}" for stop in stops)]]
    for name, model in models.items():
        found = [scores(truth, predict(model, images)) for images, truth in drawn]
        rows.append([name, *(f"{one.accuracy:.1f}" for one in found)])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is its head."""
    head, *body = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = ([c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def merged(folder: Path, schedule: str) -> PreTrainedModel:
    """`anchor/` and `donor/` merged by the library into `folder`."""
    import lwmm_hub as lw  # here: train.py measures what it trained without merging anything

    parents = str(HERE / "anchor"), str(HERE / "donor")
    return lw.merge(*parents, output=folder, schedule=schedule, overwrite=True).load().eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many sets of scenes")
    parser.add_argument("--scenes", type=int, default=200, help="scenes in each set")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    with tempfile.TemporaryDirectory() as scratch:
        models = {name: load(HERE / name) for name in ("anchor", "donor")}
        for name, schedule in {"isotropic": "isotropic", "layer-wise": "linear"}.items():
            models[name] = merged(Path(scratch) / name, schedule)
    print("Pixel accuracy / mIoU in percent, in the anchor's label set:\n")
    for domain in ("dusk", "day", "night"):
        print(seed_table(models, domain, arguments.scenes, seeds), end="\n\n", flush=True)
    print("Pixel accuracy on the way from day (0) to night (1):\n")
    print(way_table(models, arguments.scenes, FIRST_SEED))


if __name__ == "__main__":
    main()
