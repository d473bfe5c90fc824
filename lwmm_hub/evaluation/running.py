"""Subjects x data set -> `Scores`: one pass over the images for each, in parts, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lwmm_hub.errors import EvaluationError, EvaluationUsageError
from lwmm_hub.evaluation.counting import Counts
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.inference import memory_watched
from lwmm_hub.evaluation.states import (
    forget_peak,
    peak_memory,
    read_state,
    state_key,
    states_folder,
    write_state,
)
from lwmm_hub.evaluation.subjects import Subject
from lwmm_hub.evaluation.values import TASKS, Sample, Scores

Progress = Callable[[str, int, int | None], None]
SAVE_EVERY = 20.0  # seconds


@dataclass(frozen=True)
class RunOptions:
    """Which images are looked at, and how the work is split and kept.

    Attributes:
        task: one of `values.TASKS`; None is the data set's.
        limit: at most so many images, from the first.
        shards: in how many parts the images are split (image i is of part i % shards).
        shard: the one part to look at; None looks at all, and takes what other runs have done.
        batch_size: images that are read and predicted together.
        states: folder of half-done work; None is the user's cache, "" keeps none.
        fresh: begin anew, whatever is kept there.
    """

    task: str | None = None
    limit: int | None = None
    shards: int = 1
    shard: int | None = None
    batch_size: int = 1
    states: str | Path | None = None
    fresh: bool = False

    def check(self, data: DataSet) -> None:
        """Refuse values out of range.

        Raises:
            EvaluationUsageError: which, and what it may be.
            EvaluationError: the data set is empty.
        """
        if self.limit is not None and self.limit < 1:
            raise EvaluationUsageError(f"limit is {self.limit}: give a number of images from 1 on.")
        if self.shards < 1:
            raise EvaluationUsageError(f"{self.shards} shards: give a number from 1 on.")
        if self.shard is not None and not 0 <= self.shard < self.shards:
            raise EvaluationUsageError(
                f"shard {self.shard} of {self.shards}: shards are numbered from 0 to "
                f"{self.shards - 1}."
            )
        if self.task is not None and self.task not in TASKS:
            raise EvaluationUsageError(f"task {self.task!r} is unknown: choose {', '.join(TASKS)}.")
        if data.count == 0:
            raise _empty(data)


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
    counts, images, seconds = Counts.empty(task, data), 0, 0.0
    forget_peak()
    for shard in range(options.shards) if options.shard is None else (options.shard,):
        run = _Run(subject, data, options, task, shard)
        for _ in run.go():
            if progress is not None:
                progress(subject.name, images + run.done.images, total)
        counts += run.done.counts
        images, seconds = images + run.done.images, seconds + run.done.seconds
    if not images:
        raise _empty(data)
    return Scores(
        reference=subject.reference,
        commit=subject.commit,
        task=task,
        images=images,
        images_per_second=images / seconds if seconds else None,
        peak_memory_mb=peak_memory(),
        **counts.fields(),
    )


@dataclass(frozen=True)
class _Done:
    """What is done of a part: replaced as a whole after every image, so that it is always sound.

    Attributes:
        counts: of `images` images, the first ones of the part.
        images: how many.
        seconds: that took.
        finished: whether there are no more.
    """

    counts: Counts
    images: int = 0
    seconds: float = 0.0
    finished: bool = False


class _Run:
    """One part of the images for one subject, and its state on disk."""

    def __init__(
        self, subject: Subject, data: DataSet, options: RunOptions, task: str, shard: int
    ) -> None:
        self._subject, self._data, self._options, self._shard = subject, data, options, shard
        self._folder: Path | None = None
        if options.states != "" and subject.identity and data.revision:
            self._folder = Path(options.states) if options.states else states_folder()
        self._key = state_key(
            {
                "subject": subject.identity,
                "data": [data.reference, data.revision, data.split, data.columns],
                "labels": [data.space.labels, data.space.ids, data.space.void, data.with_unknown],
                "things": sorted(data.space.things or ()),
                "task": task,
                "limit": options.limit,
                "shard": [shard, options.shards],
            }
        )
        self._empty = Counts.empty(task, data)
        self.done = self._kept() or _Done(self._empty)

    def go(self) -> Iterator[None]:
        """Look at the images that are left; yields after each batch."""
        if self.done.finished:
            yield
            return
        saved = began = time.monotonic()
        try:
            for batch in self._batches():
                with memory_watched(self._subject.name):
                    self._count(batch, began)
                began = time.monotonic()
                if began - saved > SAVE_EVERY:
                    self._save()
                    saved = began
                yield
            self.done = _Done(self.done.counts, self.done.images, self.done.seconds, True)
        finally:
            # Interrupted, out of memory, a broken image: what was counted is kept.
            self._save()

    def _count(self, batch: Sequence[Sample], began: float) -> None:
        for sample in batch:
            _check_sizes(sample)
        task = self._empty.task
        found = self._subject.predict([sample.image for sample in batch], task)
        for prediction, sample in zip(found, batch, strict=True):
            counts = self.done.counts + self._empty.of(prediction, sample)
            now = time.monotonic()
            self.done = _Done(counts, self.done.images + 1, self.done.seconds + now - began)
            began = now

    def _batches(self) -> Iterator[list[Sample]]:
        step, limit = self._options.shards, self._options.limit
        start = self._shard + self.done.images * step
        samples = self._data.samples(start, step)
        if limit is not None:
            samples = islice(samples, max(0, len(range(start, limit, step))))
        while batch := list(islice(samples, self._options.batch_size)):
            yield batch

    def _kept(self) -> _Done | None:
        """What an earlier run has done; None where that cannot be used."""
        if self._folder is None or self._options.fresh:
            return None
        state = read_state(self._folder, self._key)
        if state is None:
            return None
        try:
            return _Done(
                self._empty.read(state["counts"]),
                int(state["images"]),
                float(state["seconds"]),
                state["finished"] is True,
            )
        except (KeyError, TypeError, ValueError):  # another version's, or damaged: begin again
            return None

    def _save(self) -> None:
        if self._folder is None:
            return
        state = {
            "counts": self.done.counts.to_dict(),
            "images": self.done.images,
            "seconds": self.done.seconds,
            "finished": self.done.finished,
        }
        write_state(self._folder, self._key, state)


def _check_sizes(sample: Sample) -> None:
    """An image and its truth have one size.

    Raises:
        EvaluationError: they have not.
    """
    maps = [sample.semantic, sample.panoptic.ids if sample.panoptic is not None else None]
    for truth in maps:
        if truth is not None and truth.shape != sample.image.shape[:2]:
            turned = truth.shape == sample.image.shape[1::-1]
            step = "Pair them rightly, or resize the labels (nearest)."
            if turned:
                step = "Images are turned as their EXIF data say: turn the labels likewise."
            raise EvaluationError(
                f"{sample.name}: the image has {sample.image.shape[1]} x {sample.image.shape[0]} "
                f"pixels and its labels {truth.shape[1]} x {truth.shape[0]}. {step}"
            )


def _total(data: DataSet, options: RunOptions) -> int | None:
    if data.count is None and options.limit is None:
        return None
    count = min(n for n in (data.count, options.limit) if n is not None)
    if options.shard is None:
        return count
    return len(range(options.shard, count, options.shards))


def _empty(data: DataSet) -> EvaluationError:
    split = f" {data.split}" if data.split else ""
    return EvaluationError(
        f"{data.reference}{split} holds no image for this run. Name another split or folder."
    )
