"""Subjects x data set -> `Scores`: one pass over the images for each, in parts, resumable."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.classification import ClassificationCounts
from lwmm_hub.evaluation.confusion import ConfusionMatrix
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.detection import DetectionResults
from lwmm_hub.evaluation.panoptic import PanopticCounts
from lwmm_hub.evaluation.states import read_state, state_key, states_folder, write_state
from lwmm_hub.evaluation.subjects import Subject
from lwmm_hub.evaluation.values import IGNORED, Prediction, Sample, Scores

Progress = Callable[[str, int, int | None], None]
SAVE_EVERY = 20.0  # seconds


@dataclass(frozen=True)
class RunOptions:
    """Which images are looked at, and how the work is split and kept.

    Attributes:
        task: `semantic`, `panoptic`, `classification` or `detection`; None is the data set's.
        limit: at most so many images, from the first.
        shards: in how many parts the images are split (image i is of part i % shards).
        shard: the one part to look at; None looks at all, and takes what other runs have done.
        batch_size: images that are read and predicted together.
        states: folder of half-done work; None is the user's cache, "" keeps none.
    """

    task: str | None = None
    limit: int | None = None
    shards: int = 1
    shard: int | None = None
    batch_size: int = 1
    states: str | Path | None = None

    def check(self, data: DataSet) -> None:
        """Refuse values out of range.

        Raises:
            EvaluationError: which, and what it may be.
        """
        if self.limit is not None and self.limit < 1:
            raise EvaluationError(f"limit is {self.limit}: give a number of images from 1 on.")
        if self.shards < 1 or not (self.shard is None or 0 <= self.shard < self.shards):
            raise EvaluationError(
                f"shard {self.shard} of {self.shards}: shards are numbered from 0 to one less than "
                "there are."
            )
        if self.task is not None and self.task not in _COUNTERS:
            raise EvaluationError(f"task {self.task!r} is unknown: choose {', '.join(_COUNTERS)}.")
        if data.count == 0:
            split = f" {data.split}" if data.split else ""
            raise EvaluationError(
                f"{data.reference}{split} holds no image. Name another split or folder."
            )


class _Counts:
    """What is counted of one subject: a label map, and panoptic maps where asked for."""

    def __init__(self, task: str, data: DataSet) -> None:
        self.task = task
        space = data.space
        self.parts: dict[str, Any] = {}
        if task in ("semantic", "panoptic"):
            self.parts["semantic"] = ConfusionMatrix(
                len(space), labels=space.labels, no_class=IGNORED
            )
        if task == "panoptic":
            self.parts["panoptic"] = PanopticCounts.of(space)
        if task == "classification":
            self.parts["classification"] = ClassificationCounts(len(space), labels=space.labels)
        if task == "detection":
            self.parts["detection"] = DetectionResults(space.labels)

    def update(self, prediction: Prediction, sample: Sample) -> None:
        if self.task == "classification":
            if sample.label is None or prediction.label is None:
                raise _no_truth(sample, "class")
            self.parts["classification"].update(prediction.label, sample.label)
            return
        if self.task == "detection":
            if sample.boxes is None:
                raise _no_truth(sample, "boxes")
            self.parts["detection"].update(prediction.boxes, sample.boxes)
            return
        if self.task == "panoptic":
            if sample.panoptic is None or prediction.panoptic is None:
                raise _no_truth(sample, "panoptic map")
            self.parts["panoptic"].update_panoptic(prediction.panoptic, sample.panoptic)
        if sample.semantic is not None:
            self.parts["semantic"].update(prediction.semantic, sample.semantic)
        elif self.task == "semantic":
            raise _no_truth(sample, "label map")

    def add(self, other: _Counts) -> None:
        self.parts = {name: part + other.parts[name] for name, part in self.parts.items()}

    def fields(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, part in self.parts.items():
            if name == "semantic" and self.task == "panoptic" and not part.counts.any():
                continue
            found |= {k: v for k, v in part.scores().fields().items() if v is not None}
        return found

    def to_dict(self) -> dict[str, Any]:
        return {name: part.to_dict() for name, part in self.parts.items()}

    def read(self, state: dict[str, Any]) -> None:
        self.parts = {name: type(p).from_dict(state[name]) for name, p in self.parts.items()}


_COUNTERS = ("semantic", "panoptic", "classification", "detection")


def _no_truth(sample: Sample, what: str) -> EvaluationError:
    return EvaluationError(
        f"{sample.name} has no {what} to compare with. Choose another --task, split or column."
    )


def evaluate_subjects(
    subjects: Sequence[Subject],
    data: DataSet,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> list[Scores]:
    """Score every subject on the same images.

    Args:
        subjects: models; the first is what the others are compared with.
        data: images with truth.
        options: which images, and how the work is split.
        progress: called with (name of the subject, images done, images in all or None).

    Raises:
        EvaluationError: truth or prediction cannot be scored; what was counted before is kept.
    """
    options = options or RunOptions()
    options.check(data)
    return [_evaluate(subject, data, options, progress) for subject in subjects]


def _evaluate(
    subject: Subject, data: DataSet, options: RunOptions, progress: Progress | None
) -> Scores:
    task = options.task or data.task
    total = _total(data, options)
    counts, images, seconds = _Counts(task, data), 0, 0.0
    _forget_peak()
    for shard in range(options.shards) if options.shard is None else (options.shard,):
        run = _Run(subject, data, options, task, shard)
        for _ in run.go():
            if progress is not None:
                progress(subject.name, images + run.images, total)
        counts.add(run.counts)
        images, seconds = images + run.images, seconds + run.seconds
    if not images:
        raise EvaluationError(f"{data.reference} gave no image. Name another split or folder.")
    return Scores(
        reference=subject.reference,
        commit=subject.commit,
        task=task,
        images=images,
        images_per_second=images / seconds if seconds else None,
        peak_memory_mb=_peak(),
        **counts.fields(),
    )


class _Run:
    """One part of the images for one subject, and its state on disk."""

    def __init__(
        self, subject: Subject, data: DataSet, options: RunOptions, task: str, shard: int
    ) -> None:
        self.counts = _Counts(task, data)
        self.images, self.seconds = 0, 0.0
        self._subject, self._data, self._options, self._shard = subject, data, options, shard
        self._folder: Path | None = None
        if options.states != "" and subject.identity and data.revision:
            self._folder = Path(options.states) if options.states else states_folder()
        self._key = state_key(
            {
                "subject": subject.identity,
                "data": [data.reference, data.revision, data.split, data.space.labels],
                "task": task,
                "limit": options.limit,
                "shard": [shard, options.shards],
            }
        )
        self._done = False
        self._resume()

    def go(self) -> Iterator[None]:
        """Look at the images that are left; yields after each batch."""
        if self._done:
            yield
            return
        began, before, saved = time.monotonic(), self.seconds, time.monotonic()
        try:
            for batch in self._batches():
                images = [sample.image for sample in batch]
                found = self._subject.predict(images, self.counts.task)
                for prediction, sample in zip(found, batch, strict=True):
                    _check_sizes(prediction, sample)
                    self.counts.update(prediction, sample)
                    self.images += 1
                self.seconds = before + time.monotonic() - began
                if time.monotonic() - saved > SAVE_EVERY:
                    self._save()
                    saved = time.monotonic()
                yield
            self._done = True
        finally:
            # Interrupted, out of memory, a broken image: what was counted is kept.
            self._save()

    def _batches(self) -> Iterator[list[Sample]]:
        step, limit = self._options.shards, self._options.limit
        start = self._shard + self.images * step
        samples = self._data.samples(start, step)
        if limit is not None:
            samples = islice(samples, max(0, len(range(start, limit, step))))
        while batch := list(islice(samples, self._options.batch_size)):
            yield batch

    def _resume(self) -> None:
        state = read_state(self._folder, self._key) if self._folder is not None else None
        if state is None:
            return
        fresh = self.counts
        try:
            counts = _Counts(fresh.task, self._data)
            counts.read(state["counts"])
            images, seconds, done = int(state["images"]), float(state["seconds"]), state["done"]
        except (KeyError, TypeError, ValueError, EvaluationError):
            return  # another version's, or damaged: begin again
        self.counts, self.images, self.seconds, self._done = counts, images, seconds, done is True

    def _save(self) -> None:
        if self._folder is None:
            return
        state = {
            "counts": self.counts.to_dict(),
            "images": self.images,
            "seconds": self.seconds,
            "done": self._done,
        }
        write_state(self._folder, self._key, state)


def _check_sizes(prediction: Prediction, sample: Sample) -> None:
    """An image and its truth have one size.

    Raises:
        EvaluationError: they have not.
    """
    truth = sample.semantic if sample.semantic is not None else None
    if truth is None and sample.panoptic is not None:
        truth = sample.panoptic.ids
    if truth is not None and truth.shape != sample.image.shape[:2]:
        raise EvaluationError(
            f"{sample.name}: the image has {sample.image.shape[1]} x {sample.image.shape[0]} "
            f"pixels and its labels {truth.shape[1]} x {truth.shape[0]}. Pair them rightly, or "
            "resize the labels (nearest)."
        )


def _total(data: DataSet, options: RunOptions) -> int | None:
    if data.count is None and options.limit is None:
        return None
    count = min(n for n in (data.count, options.limit) if n is not None)
    if options.shard is None:
        return count
    return len(range(options.shard, count, options.shards))


def _forget_peak() -> None:
    """Begin to measure peak memory anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> float:
    """Peak resident memory since `_forget_peak`, in MB of 10**6 bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except (OSError, ValueError, IndexError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
