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

import numpy as np
from transformers.utils import logging
from world.labels import CITY
from world.looks import DOMAINS, Domain, towards_night
from world.scoring import Model, markdown, score, streets

import lwmm_hub as lw
from lwmm_hub.evaluation.data_sets import DataSet

HERE = Path(__file__).parent
PARENTS = HERE / "anchor", HERE / "donor"
FIRST_SEED = 2001  # 1 to 3 drew the training scenes, 1001 and 1002 those for choosing the design


def draw(domain: Domain, count: int, seed: int, name: str) -> DataSet:
    return streets(domain, count, seed, CITY, name)


def percent(model: Model, data: DataSet) -> tuple[float, float]:
    """Pixel accuracy and mIoU."""
    found = score(model, data)
    assert found.pixel_accuracy is not None
    assert found.miou is not None
    return 100 * found.pixel_accuracy, 100 * found.miou


def merged(folder: Path, schedule: str) -> Path:
    """`anchor/` and `donor/` merged by the library into `folder`."""
    anchor, donor = map(str, PARENTS)
    lw.merge(anchor, donor, output=folder, schedule=schedule, overwrite=True)
    return folder


def seed_table(models: Mapping[str, Model], domain: str, count: int, seeds: Sequence[int]) -> str:
    """A row for each model, a column for each set of scenes, and their mean."""
    drawn = [draw(DOMAINS[domain], count, seed, domain) for seed in seeds]
    rows = [[f"{domain}, {count} scenes each", *(f"seed {seed}" for seed in seeds), "mean"]]
    for name, model in models.items():
        found = [percent(model, data) for data in drawn]
        mean = np.mean(found, axis=0).tolist()
        rows.append([name, *("{:.1f} / {:.1f}".format(*one) for one in (*found, mean))])
    return markdown(rows)


def way_table(models: Mapping[str, Model], count: int, seed: int) -> str:
    """A row for each model, a column for each stop on the way from day to night."""
    stops = [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]
    drawn = [draw(towards_night(stop, stop), count, seed, f"{stop:.1f}") for stop in stops]
    rows = [["way from day to night", *(f"{stop:.1f}" for stop in stops)]]
    for name, model in models.items():
        rows.append([name, *(f"{percent(model, data)[0]:.1f}" for data in drawn)])
    return markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many sets of scenes")
    parser.add_argument("--scenes", type=int, default=200, help="scenes in each set")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    with tempfile.TemporaryDirectory() as scratch:
        models: dict[str, Model] = {folder.name: folder for folder in PARENTS}
        models["isotropic"] = merged(Path(scratch) / "isotropic", "isotropic")
        models["layer-wise"] = merged(Path(scratch) / "layer-wise", "linear")
        print("Pixel accuracy / mIoU in percent, in the anchor's label set:\n")
        for domain in ("dusk", "day", "night"):
            print(seed_table(models, domain, arguments.scenes, seeds), end="\n\n", flush=True)
        print("Pixel accuracy on the way from day (0) to night (1):\n")
        print(way_table(models, arguments.scenes, FIRST_SEED))


if __name__ == "__main__":
    main()
