"""The paper's tables at toy scale: merge the workbench's models and score them on the target.

    .venv/bin/python examples/street/tables.py                 # what `make street` left in street/
    .venv/bin/python examples/street/tables.py --models street street/seed-1 street/seed-2

With several folders of models (one for each seed of the trainings) every cell is their mean, with
the standard deviation behind it. Which model is the anchor is decided on the target's validation
scenes; everything in the tables is scored on its test scenes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging
from world.data import LABEL_SPACE, street_dataset
from world.labels import COARSE, FINE
from world.scoring import Model, markdown, mean_iou, score

import lwmm_hub as lw
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.opening import open_data
from lwmm_hub.evaluation.values import Scores

STRATEGIES = ("source-only", "minimum-entropy", "maximum-squares", "adversarial", "self-training")
RUN = ("self-training-step-250", "self-training-step-350", "self-training")
Cells = dict[str, list[float]]  # row -> percentages
Table = Callable[["Bench"], Cells]


@dataclass(frozen=True)
class Bench:
    """One seed's models, the target's scenes, and a place for merges."""

    models: Path
    validation: DataSet
    test: DataSet
    scratch: Path
    known: dict[Hashable, Scores] = field(default_factory=dict)

    def at(self, name: str) -> Path:
        return self.models / name

    def merge(self, names: Sequence[str], schedule: str) -> Path:
        """The first of the models merged with the others, in a folder of its own."""
        folder = self.scratch / f"{schedule} {' '.join(names)}"
        if not folder.exists():
            anchor, *donors = (str(self.at(name)) for name in names)
            lw.merge(anchor, *donors, output=folder, schedule=schedule)
        return folder

    def score(self, model: Model, data: DataSet | None = None, task: str = "semantic") -> Scores:
        """On the test scenes, or on others; each model is run once."""
        data = data or self.test
        key = (str(model), id(data), task)
        if key not in self.known:
            self.known[key] = score(model, data, task)
        return self.known[key]

    def miou(self, model: Model, data: DataSet | None = None) -> float:
        return 100 * mean_iou(self.score(model, data), FINE.classes)

    def three(self, names: Sequence[str], measure: Callable[[Model], list[float]]) -> Cells:
        """Isotropic, ensemble and layer-wise of the same models."""
        return {
            "isotropic": measure(self.merge(names, "isotropic")),
            "ensemble": measure([self.at(name) for name in names]),
            "layer-wise": measure(self.merge(names, "linear")),
        }


def strategies(bench: Bench) -> Cells:
    """Each strategy alone on the target and, for comparison, on the source it was trained on."""
    source = open_data(
        street_dataset("arcade", "test", bench.test.count or 0), label_space=LABEL_SPACE
    )
    return {
        name: [bench.miou(bench.at(name)), bench.miou(bench.at(name), source)]
        for name in STRATEGIES
    }


def merged_strategies(bench: Bench) -> Cells:
    """All pairs of strategies, and all five; the one best in validation is the anchor."""
    order = sorted(STRATEGIES, key=lambda n: -bench.miou(bench.at(n), bench.validation))
    rows: Cells = {}
    for chosen in (*combinations(STRATEGIES, 2), STRATEGIES):
        names = [name for name in order if name in chosen]
        alone = max(bench.miou(bench.at(name)) for name in names)
        found = bench.three(names, lambda model: [bench.miou(model)])
        title = "all five" if len(names) > 2 else " + ".join(chosen)
        rows[title] = [alone, *(cells[0] for cells in found.values())]
    return rows


def sources(bench: Bench) -> Cells:
    """Two sources with other class counts, both adapted by self-training."""

    def measure(model: Model) -> list[float]:
        found = bench.score(model)
        return [100 * mean_iou(found, FINE.classes), 100 * mean_iou(found, COARSE.classes)]

    rows = {
        "arcade, 10 classes": measure(bench.at("self-training")),
        "studio, 8 classes": measure(bench.at("studio")),
    }
    if bench.at("studio-source-only").is_dir():  # the last that the workbench trains
        rows["studio, source only"] = measure(bench.at("studio-source-only"))
    for anchor, names in {
        "arcade": ("self-training", "studio"),
        "studio": ("studio", "self-training"),
    }.items():
        found = bench.three(names, measure)
        rows |= {f"{name}, anchor {anchor}": cells for name, cells in found.items()}
    return rows


def checkpoints(bench: Bench) -> Cells:
    """Three checkpoints of the self-training run; the last is the anchor."""
    rows = {name: [bench.miou(bench.at(name))] for name in RUN}
    return rows | bench.three(RUN[::-1], lambda model: [bench.miou(model)])


def heads(bench: Bench) -> Cells:
    """One backbone under heads of two widths: only the backbone can merge."""
    names = ("self-training", "wide-head")
    rows = {name: [bench.miou(bench.at(name))] for name in names}
    for pair in (names, names[::-1]):
        found = bench.three(pair, lambda model: [bench.miou(model)])
        rows |= {f"{name}, anchor {pair[0]}": cells for name, cells in found.items()}
    return rows


def panoptic(bench: Bench) -> Cells:
    """A semantic model that knows the target merged into a panoptic one that does not."""
    names = ("panoptic", "upernet")

    def measure(model: Path) -> list[float]:
        found = bench.score(model, task="panoptic")
        return [*(100 * (x or 0.0) for x in _qualities(found)), bench.miou(model)]

    return {
        "panoptic (arcade)": measure(bench.at("panoptic")),
        "isotropic": measure(bench.merge(names, "isotropic")),
        "layer-wise": measure(bench.merge(names, "linear")),
        "donor: upernet": [float("nan")] * 5 + [bench.miou(bench.at("upernet"))],
    }


def _qualities(found: Scores) -> tuple[float | None, ...]:
    return found.pq, found.sq, found.rq, found.pq_things, found.pq_stuff


TABLES: dict[str, tuple[str, list[str], Table]] = {
    "strategies": (
        "One strategy each, mIoU (paper: Table 1's single models)",
        ["arcade to town", "mIoU on town", "mIoU on arcade"],
        strategies,
    ),
    "merged": (
        "Strategies merged, mIoU on town (paper: Tables 1 and 2)",
        ["strategies", "best alone", "isotropic", "ensemble", "layer-wise"],
        merged_strategies,
    ),
    "sources": (
        "Two sources of 10 and 8 classes, mIoU on town (paper: Table 4a)",
        ["model", "10 classes", "the 8 shared"],
        sources,
    ),
    "checkpoints": (
        "Checkpoints of one run, mIoU on town (paper: checkpoint training scenario)",
        ["model", "mIoU"],
        checkpoints,
    ),
    "heads": (
        "Two heads on one backbone, mIoU on town (paper: Tables 4b and 5)",
        ["model", "mIoU"],
        heads,
    ),
    "panoptic": (
        "Semantic into panoptic, on town (paper: Table 6)",
        ["model", "PQ", "SQ", "RQ", "PQ things", "PQ stuff", "mIoU"],
        panoptic,
    ),
}


def rendered(head: list[str], found: Sequence[Cells]) -> str:
    """The mean over seeds of each cell, and with several seeds their standard deviation."""
    rows = [head]
    for name in found[0]:
        values = np.array([cells[name] for cells in found])
        means, spread = values.mean(0), values.std(0, ddof=1) if len(found) > 1 else None
        cells = ["-" if np.isnan(mean) else f"{mean:.1f}" for mean in means]
        if spread is not None:
            pairs = zip(cells, spread.tolist(), strict=True)
            cells = [cell if cell == "-" else f"{cell} ± {sd:.1f}" for cell, sd in pairs]
        rows.append([name, *cells])
    return markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, nargs="+", default=[Path("street")])
    parser.add_argument("--scenes", type=int, default=100, help="of the target, to test on")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # so small a network is slower on several
    count = arguments.scenes
    validation, test = (
        open_data(street_dataset("town", split, n), label_space=LABEL_SPACE)
        for split, n in (("validation", count // 2), ("test", count))
    )
    with tempfile.TemporaryDirectory() as scratch:
        benches = []
        for number, models in enumerate(arguments.models):
            place = Path(scratch) / str(number)
            place.mkdir()
            benches.append(Bench(models, validation, test, place))
        for key in arguments.only:
            title, head, table = TABLES[key]
            found = [table(bench) for bench in benches]
            print(f"{title}:\n\n{rendered(head, found)}\n", flush=True)


if __name__ == "__main__":
    main()
