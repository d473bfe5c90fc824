"""What is counted of one subject: the metrics of a task, with one truth for all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.classification import ClassificationCounts, call_unknown
from lwmm_hub.evaluation.confusion import ConfusionMatrix
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.detection import DetectionResults
from lwmm_hub.evaluation.panoptic import PanopticCounts
from lwmm_hub.evaluation.values import Prediction, Sample


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts of a task: `+` adds them up, and neither side changes.

    Attributes:
        task: one of `values.TASKS`.
        parts: name of a metric -> its counts. Panoptic truth is scored as label maps, too.
    """

    task: str
    parts: dict[str, Any]

    @classmethod
    def empty(cls, task: str, data: DataSet) -> Counts:
        """Counts of no image of a data set.

        Raises:
            EvaluationError: nobody says which classes are things.
        """
        space = data.space
        parts: dict[str, Any] = {}
        if task in ("semantic", "panoptic"):
            parts["semantic"] = ConfusionMatrix(
                len(space), space.ignored, labels=space.labels, no_class=space.ignored
            )
        if task == "panoptic":
            parts["panoptic"] = PanopticCounts.of(space)
        if task == "classification":
            parts["classification"] = ClassificationCounts(
                len(space), with_unknown=data.with_unknown, labels=space.labels
            )
        if task == "detection":
            parts["detection"] = DetectionResults(space.labels)
        return cls(task, parts)

    def of(self, prediction: Prediction, sample: Sample) -> Counts:
        """Counts of one image, made from counts of none, which stay as they are.

        Raises:
            EvaluationError: the sample has no truth for the task, or the two cannot be compared.
        """
        fresh = copy.deepcopy(self.parts)
        _UPDATES[self.task](fresh, prediction, sample)
        return Counts(self.task, fresh)

    def __add__(self, other: Counts) -> Counts:
        parts = {name: part + other.parts[name] for name, part in self.parts.items()}
        return Counts(self.task, parts)

    def fields(self) -> dict[str, Any]:
        """What the counts amount to, as `Scores` has it."""
        found: dict[str, Any] = {}
        for name, part in self.parts.items():
            if self.task != name == "semantic" and not (part.counts.any() or part.missed.any()):
                continue  # panoptic maps alone
            found |= {k: v for k, v in part.scores().fields().items() if v is not None}
        return found

    def to_dict(self) -> dict[str, Any]:
        """The state, as JSON takes it."""
        return {name: part.to_dict() for name, part in self.parts.items()}

    def read(self, state: Mapping[str, Any]) -> Counts:
        """Counts of the same kind from their state.

        Raises:
            EvaluationError: the state is damaged, or of other classes.
            KeyError: a metric is missing.
        """
        parts = {name: type(part).from_dict(state[name]) for name, part in self.parts.items()}
        return self + Counts(self.task, parts)  # adding checks that the classes are the same


def _semantic(parts: dict[str, Any], prediction: Prediction, sample: Sample) -> None:
    truth = _there(sample.semantic, sample, "label map")
    parts["semantic"].update(_given(prediction.semantic, "label map"), truth)


def _panoptic(parts: dict[str, Any], prediction: Prediction, sample: Sample) -> None:
    truth = _there(sample.panoptic, sample, "panoptic map")
    parts["panoptic"].update_panoptic(_given(prediction.panoptic, "panoptic map"), truth)
    if sample.semantic is not None:
        _semantic(parts, prediction, sample)


def _classification(parts: dict[str, Any], prediction: Prediction, sample: Sample) -> None:
    truth = _there(sample.label, sample, "class")
    counts: ClassificationCounts = parts["classification"]
    label = _given(prediction.label, "class")
    if counts.with_unknown:
        row = _given(prediction.probabilities, "probabilities")
        label = counts.num_classes if call_unknown(row[None])[0] == len(row) else label
    counts.update(label, truth)


def _detection(parts: dict[str, Any], prediction: Prediction, sample: Sample) -> None:
    truth = _there(sample.boxes, sample, "boxes")
    parts["detection"].update(_given(prediction.boxes, "boxes"), truth)


_UPDATES: dict[str, Callable[[dict[str, Any], Prediction, Sample], None]] = {
    "semantic": _semantic,
    "panoptic": _panoptic,
    "classification": _classification,
    "detection": _detection,
}


def _there(truth: Any, sample: Sample, what: str) -> Any:
    if truth is None:
        raise EvaluationError(
            f"{sample.name} has no {what} to compare with. Choose another --task, split or column."
        )
    return truth


def _given(prediction: Any, what: str) -> Any:
    if prediction is None:
        raise EvaluationError(f"the model gives no {what}. Evaluate it on data for its task.")
    return prediction
