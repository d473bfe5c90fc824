"""Models x data set -> `Report`: what `lwmm-hub evaluate` and `lwmm_hub.evaluate` do."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from lwmm_hub.errors import LwmmError, UsageError
from lwmm_hub.evaluation.costs import Cost, measure_costs
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.inference import InferenceOptions
from lwmm_hub.evaluation.label_maps import LabelOptions
from lwmm_hub.evaluation.opening import open_data
from lwmm_hub.evaluation.overlays import draw_overlay
from lwmm_hub.evaluation.reporting import Report, describe_data, gather_notes
from lwmm_hub.evaluation.running import Progress, RunOptions, evaluate_subjects
from lwmm_hub.evaluation.subjects import (
    Ensemble,
    HubModel,
    OwnModule,
    Predict,
    Subject,
    distinct_names,
    labels_of_models,
)
from lwmm_hub.evaluation.values import Labels, Sample, Scores
from lwmm_hub.keywords import arguments_of, check_known, keywords
from lwmm_hub.reference import ModelReference

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

    from lwmm_hub.evaluation.opening import ReadingFields

Reference = str | os.PathLike[str] | ModelReference


@dataclass(frozen=True)
class Column:
    """What is scored beside the models that the user names: made in its turn, and gone after it.

    Attributes:
        name: what it is called, wherever its files are.
        about: what it is, for a note; "" where its own notes say it.
        open: makes it, and gives its references; several are an ensemble, compared by name.
        optional: whether it is left out, with a note, where it cannot be evaluated.
    """

    name: str
    about: str
    open: Callable[[], AbstractContextManager[Sequence[Reference]]]
    optional: bool = False


@dataclass(frozen=True, repr=False)
class Evaluation:
    """A report, and the picture where one was asked for; a notebook shows both."""

    report: Report
    overlay: Image | None = None

    def __repr__(self) -> str:
        return f"<Evaluation of {', '.join(self.report.names)} on {self.report.title}>"

    def __str__(self) -> str:
        return str(self.report)

    def _repr_html_(self) -> str:
        picture = ""
        if self.overlay is not None:
            file = io.BytesIO()
            self.overlay.save(file, "PNG")
            data = base64.b64encode(file.getvalue()).decode()
            picture = (
                f"<img alt='images, truth and predictions' src='data:image/png;base64,{data}'>"
            )
        return f"<div>{self.report._repr_html_()}{picture}</div>"


def evaluate_models(
    models: Sequence[Reference],
    data: DataSet,
    *,
    ensemble: Sequence[Reference] = (),
    labels: LabelOptions | None = None,
    inference: InferenceOptions | None = None,
    run: RunOptions | None = None,
    overlay: int = 0,
    speed: int = 0,
    columns: Sequence[Column] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Score models on the same images, one after the other.

    Args:
        models: references; the first is what the others are compared with.
        data: images with truth.
        ensemble: models whose probabilities are averaged, as one more column.
        labels: what to do where a model's labels differ from the data set's.
        inference: how images go through the networks.
        run: which images, and how the work is split and kept.
        overlay: so many images of the first ones are drawn.
        speed: so many images are timed for the relative cost of inference, with all models in
            memory.
        columns: what else is scored, behind the models and the ensemble.
        progress: called with (name, images done, images in all or None).

    Raises:
        LwmmError: a model cannot be loaded, or truth or prediction cannot be scored.
    """
    if not models and not ensemble and not columns:
        raise UsageError("there is nothing to evaluate: name at least one model.")
    inference = inference or InferenceOptions()
    labels = labels or LabelOptions()
    if labels.names and len(models) + len(ensemble) > 1:
        of_all = labels_of_models((*models, *ensemble))
        labels = replace(labels, others=(*labels.others, *sorted(of_all)))
    run = run or RunOptions()
    inference.check()  # before anything is downloaded
    run = replace(run, batch_size=max(run.batch_size, inference.batch_size))
    run.check(data)
    if overlay < 0 or speed < 0:
        raise UsageError(f"{min(overlay, speed)} images: give a number from 0 on.")
    if overlay:
        _check_overlay(run.task or data.task)

    def load(reference: Reference, options: LabelOptions) -> HubModel:
        return HubModel(reference, data.space, options, inference)

    def join(references: Sequence[Reference], options: LabelOptions) -> Ensemble:
        return Ensemble([load(reference, options) for reference in references])

    def of_column(column: Column, references: Sequence[Reference]) -> Subject:
        subject: Subject
        if len(references) == 1:
            subject = load(references[0], labels)
        else:
            subject = join(references, replace(labels, partial=True))
        subject.name = subject.reference = column.name
        return subject

    makers: list[Callable[[], Subject]] = [partial(load, model, labels) for model in models]
    if ensemble:
        makers.append(partial(join, ensemble, labels))
    shown = list(islice(data.samples(0, 1), overlay))
    seen: list[_Seen] = []

    def score(subject: Subject, column: Column | None = None) -> None:
        (scores,) = evaluate_subjects([subject], data, run, progress)
        seen.append(_Seen.of(subject, scores, shown, column))

    for make in makers:  # one at a time: memory holds one model, or one ensemble
        score(make())
    made: list[Column] = []
    left_out: list[str] = []
    for column in columns:
        try:
            with column.open() as references:
                score(of_column(column, references), column)
            made.append(column)
        except LwmmError as error:
            if not column.optional:
                raise
            left_out.append(f"{column.name} was not evaluated: {error.text}")
    costs: list[Cost] = []
    if speed:
        task = run.task or data.task
        timed = [sample.image for sample in islice(data.samples(0, 1), speed)]
        with ExitStack() as opened:
            subjects = [make() for make in makers]
            subjects += [of_column(c, opened.enter_context(c.open())) for c in made]
            costs = measure_costs(subjects, timed, task)
    return _evaluation(seen, costs, data, run, shown, left_out)


@arguments_of(open_data)
def evaluate(
    model: Any,
    dataset: Any,
    *,
    predict: Predict | None = None,
    labels: Sequence[str] | None = None,
    split: str | None = None,
    task: str | None = None,
    limit: int | None = None,
    map_labels: bool | Mapping[str, str] = False,
    batch_size: int = 1,
    device: str | None = None,
    dtype: str = "float32",
    window: int | tuple[int, int] | None = None,
    flip: bool = False,
    progress: Progress | None = None,
    **reading: Unpack[ReadingFields],
) -> Scores:
    """Score one model, or a module of your own, on a data set.

    Args:
        model: a reference as `merge` takes it, or with `predict` anything at all.
        dataset: a `DataSet`, or what `open_data` takes: a data set's name on the Hub, a folder, or
            a `datasets.Dataset`.
        predict: (model, uint8 RGB image of (height, width, 3)) -> float scores of (classes, h, w),
            or integer labels of (height, width).
        labels: names of the model's classes in order, where they are not its config's (or, with
            `predict`, not the data set's).
        split: of the data set.
        task: `semantic`, `panoptic`, `classification` or `detection`; None is the data set's.
        limit: at most so many images.
        map_labels: compare by name where labels differ (predictions that the data set has no name
            for count as wrong); or a mapping from the model's names to the data set's.
        batch_size: images of one size that go through the network at once.
        device: e.g. `cuda:1`; None is the accelerator, if there is one.
        dtype: `float32`, `float16` or `bfloat16`.
        window: (height, width) of a sliding window, or one number; None shows whole images.
        flip: also show every image mirrored, and average.
        progress: called with (name, images done, images in all or None).
        **reading: how the data set is read: `label_space` (what its labels are: a name such as
            `cityscapes-19`, a JSON file, or their names in order), `revision`, `image_column`,
            `label_column`, `streaming`, `open_partial`.

    Raises:
        LwmmError: see the tree in `lwmm_hub.errors`.
    """
    check_known(reading, (p.name for p in keywords(evaluate)))
    data = _opened(dataset, split, task, reading)
    own = tuple(labels or ()) if predict is None else ()
    options = LabelOptions.of(map_labels, own)
    inference = InferenceOptions(device, dtype, batch_size, _square(window), flip=flip)
    run = RunOptions(task=task, limit=limit, batch_size=batch_size)
    subject: Subject
    if predict is not None:
        subject = OwnModule(model, predict, data.space, labels, options)
    elif isinstance(model, str | os.PathLike | ModelReference):
        subject = HubModel(model, data.space, options, inference)
    else:
        raise UsageError(
            f"a {type(model).__name__} is evaluated by its folder or name, or with predict=: a "
            "function of the module and an image that gives scores of (classes, h, w)."
        )
    return evaluate_subjects([subject], data, run, progress)[0]


@arguments_of(open_data)
def compare(
    models: Sequence[Reference],
    dataset: Any,
    *,
    ensemble: Sequence[Reference] = (),
    labels: Sequence[str] | None = None,
    split: str | None = None,
    task: str | None = None,
    limit: int | None = None,
    map_labels: bool | Mapping[str, str] = False,
    batch_size: int = 1,
    device: str | None = None,
    dtype: str = "float32",
    window: int | tuple[int, int] | None = None,
    flip: bool = False,
    overlay: int = 0,
    speed: int = 0,
    progress: Progress | None = None,
    **reading: Unpack[ReadingFields],
) -> Evaluation:
    """Score models side by side, on the same images, as `lwmm-hub evaluate` does.

    Args:
        models: references as `merge` takes them; the first is what the others are compared with.
        dataset: as for `evaluate`.
        ensemble: models whose probabilities are averaged, as one more column.
        labels: names of the models' classes in order, where they are not their configs'.
        split: of the data set.
        task: as for `evaluate`.
        limit: at most so many images.
        map_labels: as for `evaluate`.
        batch_size: images of one size that go through a network at once.
        device: e.g. `cuda:1`; None is the accelerator, if there is one.
        dtype: `float32`, `float16` or `bfloat16`.
        window: (height, width) of a sliding window, or one number; None shows whole images.
        flip: also show every image mirrored, and average.
        overlay: so many of the first images are drawn with truth and predictions.
        speed: so many images are timed for the relative cost of inference, with all models in
            memory.
        progress: called with (name, images done, images in all or None).
        **reading: how the data set is read: `label_space` (what its labels are: a name such as
            `cityscapes-19`, a JSON file, or their names in order), `revision`, `image_column`,
            `label_column`, `streaming`, `open_partial`.

    Returns:
        `report` with the table, `overlay` with the picture.

    Raises:
        LwmmError: see the tree in `lwmm_hub.errors`.
    """
    check_known(reading, (p.name for p in keywords(compare)))
    if isinstance(models, str | os.PathLike | ModelReference):
        raise UsageError("models are a list: compare([merged, anchor], ...).")
    return evaluate_models(
        models,
        _opened(dataset, split, task, reading),
        ensemble=ensemble,
        labels=LabelOptions.of(map_labels, tuple(labels or ())),
        inference=InferenceOptions(device, dtype, batch_size, _square(window), flip=flip),
        run=RunOptions(task=task, limit=limit, batch_size=batch_size),
        overlay=overlay,
        speed=speed,
        progress=progress,
    )


def _square(window: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (window, window) if isinstance(window, int) else window


def _opened(dataset: Any, split: str | None, task: str | None, reading: ReadingFields) -> DataSet:
    if not isinstance(dataset, DataSet):
        return open_data(dataset, split=split, task=task, **reading)
    if split is not None or reading:
        raise UsageError("a DataSet is open already: leave split and reading options out.")
    return dataset


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is left of a subject when its network is gone."""

    name: str
    scores: Scores
    maps: list[Labels]
    notes: tuple[str, ...]
    role: str = ""

    @classmethod
    def of(
        cls, subject: Subject, scores: Scores, shown: Sequence[Sample], column: Column | None
    ) -> _Seen:
        maps = []
        for sample in shown:
            (prediction,) = subject.predict([sample.image], "semantic")
            assert prediction.semantic is not None
            maps.append(prediction.semantic)
        if column is None:
            return cls(subject.name, scores, maps, subject.notes)
        about = (f"{column.name} is {column.about}.",) if column.about else ()
        return cls(subject.name, scores, maps, (*about, *subject.notes), column.name)


def _evaluation(
    seen: Sequence[_Seen],
    costs: Sequence[Cost],
    data: DataSet,
    run: RunOptions,
    shown: Sequence[Sample],
    left_out: Sequence[str],
) -> Evaluation:
    names = distinct_names([s.name for s in seen])
    part = None if run.shard is None or run.shards == 1 else (run.shard, run.shards)
    told = [(s.name, name, s.notes) for s, name in zip(seen, names, strict=True)]
    report = Report(
        describe_data(data, seen[0].scores.images, part),
        names,
        tuple(s.scores for s in seen),
        (*gather_notes(told), *left_out),
        tuple(costs),
        tuple(s.role for s in seen) if any(s.role for s in seen) else (),
    )
    picture = None
    if shown:
        maps = {name: s.maps for name, s in zip(names, seen, strict=True)}
        picture = draw_overlay(shown, maps, data.space)
    return Evaluation(report, picture)


def _check_overlay(task: str) -> None:
    if task not in ("semantic", "panoptic"):
        raise UsageError(f"an overlay shows label maps, not {task}. Leave --overlay out.")
