"""Measure the metrics against torchmetrics and against a bare numpy count.

`make bench`, or alone. One scene of 1024 x 2048 pixels and 19 classes, a tenth of it ignored. The
programs take turns, so that a busy machine is busy for all; the least time of each counts.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.evaluation import ConfusionMatrix, PanopticCounts
from lwmm_hub.evaluation.label_spaces import label_space

HEIGHT, WIDTH, CLASSES, FIRST_THING = 1024, 2048, 19, 11
Work = Callable[[], object]


@dataclass(frozen=True)
class Scene:
    """A drawn scene: what is true and what a model might say of it."""

    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    true_ids: NDArray[np.int32]
    found_ids: NDArray[np.int32]


def draw(seed: int, things: int = 60) -> Scene:
    """Patches of stuff and boxes of things; borders off by some pixels; 3 % of pixels are noise."""
    rng = np.random.default_rng(seed)
    stuff = np.repeat(np.repeat(rng.integers(0, FIRST_THING, (16, 32)), 64, 0), 64, 1)
    truth = stuff.astype(np.uint8)
    true_ids = (truth + 1).astype(np.int32)
    prediction, found_ids = np.roll(truth, 3, axis=1), np.roll(true_ids, 3, axis=1)
    for number in range(things):
        category = int(rng.integers(FIRST_THING, CLASSES))
        top, left = int(rng.integers(0, HEIGHT - 200)), int(rng.integers(0, WIDTH - 200))
        height, width = (int(x) for x in rng.integers(10, 180, 2))
        there = np.s_[top : top + height, left : left + width]
        found = np.s_[top + 2 : top + height, left + 2 : left + width]
        truth[there], true_ids[there] = category, 1000 + number
        prediction[found], found_ids[found] = category, 5000 + number
    noise = rng.random(truth.shape) < 0.03
    prediction[noise] = rng.integers(0, CLASSES, int(noise.sum()))
    void = np.zeros(truth.shape, bool)
    void[rng.integers(0, HEIGHT, HEIGHT // 10)] = True
    truth[void], true_ids[void] = 255, 0
    return Scene(truth, prediction, true_ids, found_ids)


def take_turns(works: dict[str, Work], repeats: int, once: Sequence[str] = ()) -> dict[str, float]:
    """The least seconds of each; those in `once` run a single time."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats):
        for name, work in works.items():
            if repeat and name in once:
                continue
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: min(row) for name, row in seconds.items()}


def bare(prediction: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.int64]:
    """The shortest count there is: mask, one index a pair, bincount."""
    counted = truth != 255
    pairs = truth[counted].astype(np.int64) * CLASSES + prediction[counted]
    return np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def semantic(scene: Scene, repeats: int) -> list[str]:
    """Counting of one image, as bytes and as int64 (an argmax of torch)."""
    import torch
    from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

    wide = scene.prediction.astype(np.int64), scene.truth.astype(np.int64)
    tensors = tuple(torch.from_numpy(array) for array in wide)
    ours, ours_wide = ConfusionMatrix(CLASSES), ConfusionMatrix(CLASSES)
    theirs = MulticlassConfusionMatrix(CLASSES, ignore_index=255)
    index = MulticlassJaccardIndex(CLASSES, ignore_index=255)
    found = take_turns(
        {
            "ConfusionMatrix.update, uint8": lambda: ours.update(scene.prediction, scene.truth),
            "ConfusionMatrix.update, int64": lambda: ours_wide.update(*wide),
            "numpy bincount, uint8": lambda: bare(scene.prediction, scene.truth),
            "numpy bincount, int64": lambda: bare(*wide),
            "torchmetrics MulticlassConfusionMatrix": lambda: theirs.update(*tensors),
            "torchmetrics MulticlassJaccardIndex": lambda: index.update(*tensors),
        },
        repeats,
    )
    assert (ours.counts == ours_wide.counts).all()
    assert (ours.counts == theirs.compute().numpy()).all()
    table(found)
    rows = list(found.values())
    return [
        verdict("semantic, uint8: torchmetrics' time", min(rows[4:]) / rows[0], at_least=10),
        verdict("semantic, int64: torchmetrics' time", min(rows[4:]) / rows[1], at_least=10),
        verdict("semantic, uint8: of bare bincount", rows[0] / rows[2], at_most=1.5),
        verdict("semantic, int64: of bare bincount", rows[1] / rows[3], at_most=1.5),
    ]


def segments(ids: NDArray[np.int32], classes: NDArray[np.uint8]) -> list[dict[str, int]]:
    numbers, first = np.unique(ids, return_index=True)
    kept = [(int(n), int(classes.ravel()[i])) for n, i in zip(numbers, first, strict=True) if n]
    return [{"id": n, "category_id": c, "iscrowd": 0} for n, c in kept]


def panoptic(scene: Scene, repeats: int) -> list[str]:
    """Panoptic quality of one image."""
    import torch
    from torchmetrics.detection import PanopticQuality

    true = segments(scene.true_ids, scene.truth)
    classes = np.zeros(scene.found_ids.max() + 1, np.uint8)
    classes[1:CLASSES] = np.arange(CLASSES - 1)
    thing = {s["id"] - 1000: s["category_id"] for s in true if s["id"] >= 1000}
    for number in np.unique(scene.found_ids[scene.found_ids >= 5000]).tolist():
        classes[number] = thing.get(number - 5000, FIRST_THING)
    found = segments(scene.found_ids, classes[scene.found_ids])
    ours = PanopticCounts.of(label_space("cityscapes-19"))
    rng = np.random.default_rng(0)
    order = rng.permutation(scene.found_ids.size).reshape(scene.found_ids.shape)
    shuffled = scene.found_ids.ravel()[order], scene.true_ids.ravel()[order]
    noisy = PanopticCounts.of(label_space("cityscapes-19"))
    theirs = PanopticQuality(
        set(range(FIRST_THING, CLASSES)),
        set(range(FIRST_THING)),
        allow_unknown_preds_category=True,
    )
    truth = np.where(scene.true_ids > 0, scene.truth, 255)
    tensors = [
        torch.from_numpy(np.stack([category, ids], axis=-1).astype(np.int64))[None]
        for category, ids in (
            (classes[scene.found_ids], scene.found_ids),
            (truth, scene.true_ids),
        )
    ]
    name = "torchmetrics PanopticQuality"
    seconds = take_turns(
        {
            "PanopticCounts.update": lambda: ours.update(
                scene.found_ids, found, scene.true_ids, true
            ),
            "PanopticCounts.update, pixels shuffled": lambda: noisy.update(
                shuffled[0], found, shuffled[1], true
            ),
            name: lambda: theirs.update(*tensors),
        },
        repeats,
        once=[name],
    )
    assert abs(ours.scores().pq - float(theirs.compute())) < 1e-4
    table(seconds)
    rows = list(seconds.values())
    return [
        verdict("panoptic: torchmetrics' time", rows[2] / rows[0], at_least=10),
        verdict("panoptic, shuffled: torchmetrics' time", rows[2] / rows[1], at_least=10),
    ]


def table(found: dict[str, float]) -> None:
    for name, seconds in found.items():
        say(f"| {name} | {seconds * 1e3:.1f} |")


def verdict(
    what: str, value: float, at_least: float | None = None, at_most: float | None = None
) -> str:
    met = value >= at_least if at_least is not None else value <= (at_most or 0.0)
    limit = f"at least {at_least:g}x" if at_least is not None else f"at most {at_most:g}x"
    return f"{'met   ' if met else 'MISSED'}  {what} {value:.3g}x ({limit})"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    scene = draw(0)
    say(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {HEIGHT} x {WIDTH}, {CLASSES} "
        f"classes; least of {arguments.repeats}, interleaved\n"
    )
    say("| one image | ms |")
    say("|---|---|")
    verdicts = semantic(scene, arguments.repeats) + panoptic(scene, arguments.repeats)
    say("\nTargets\n")
    for line in verdicts:
        say(f"    {line}")


if __name__ == "__main__":
    main()
