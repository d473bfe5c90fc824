"""Semantic segmentation: one matrix of counts for a whole data set, and the scores that it gives.

Differences from others, all deliberate:

- A class that neither truth nor prediction has scores NaN and is left out of the means.
  torchmetrics gives 0 there (and leaves it out of the macro mean too), `evaluate`'s `mean_iou` NaN.
- Where the truth is ignored, the prediction is not looked at, whatever it is. torchmetrics refuses
  a prediction out of range even there.
- A prediction out of range anywhere else is an error, unless `no_class` says that it means "none of
  these": then it is missed and nobody's false alarm, as cityscapesScripts counts labels that it
  does not score, and as `evaluate`'s `mean_iou` counts whatever is out of range.
- Counting is of the whole data set: no mean of image scores (as torchmetrics' `MeanIoU` gives).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.label_maps import compared
from lwmm_hub.evaluation.label_spaces import label_space
from lwmm_hub.evaluation.values import IGNORED, Labels, known_mean

Counts = NDArray[np.int64]
_MOST = 4096  # classes; a matrix of 128 MB
_PIECE = 65536  # pixels counted at a time


@dataclass(frozen=True, eq=False)
class SemanticScores:
    """Scores of a confusion matrix: fractions of 1; NaN for what occurs nowhere.

    Attributes:
        miou: mean of `iou` over the classes that truth or prediction have.
        pixel_accuracy: labelled pixels whose class is right.
        mean_accuracy: mean of `class_accuracy` over the classes that the truth has.
        frequency_weighted_iou: mean of `iou`, each weighted by its part of the truth's pixels.
        iou: float64, (classes,): intersection over union.
        class_accuracy: float64, (classes,): part of the class's pixels that was found (recall).
        miou16, miou13: mean of `iou` over SYNTHIA's 16 and 13 classes, as results on Cityscapes
            with 19 are told; None where the labels are not given or lack one of them.
        labels: names of the classes, if given.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    iou: NDArray[np.float64]
    class_accuracy: NDArray[np.float64]
    miou16: float | None = None
    miou13: float | None = None
    labels: tuple[str, ...] | None = None

    def fields(self) -> dict[str, Any]:
        """As `Scores` has them: numbers, and a mapping of class names for each array."""
        labels = self.labels or tuple(str(i) for i in range(len(self.iou)))
        return {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "frequency_weighted_iou": self.frequency_weighted_iou,
            "iou": dict(zip(labels, self.iou.tolist(), strict=True)),
            "class_accuracy": dict(zip(labels, self.class_accuracy.tolist(), strict=True)),
            "miou16": self.miou16,
            "miou13": self.miou13,
        }


class ConfusionMatrix:
    """Counts of (true class, predicted class), added up over a data set.

    >>> matrix = ConfusionMatrix(2)
    >>> matrix.update(np.array([[0, 1, 1]]), np.array([[0, 0, 255]]))
    >>> matrix.counts
    array([[1, 1],
           [0, 0]])
    >>> matrix.scores().miou
    0.25

    Args:
        num_classes: classes are 0 to `num_classes` - 1.
        ignore_index: value in a truth that is not counted; None to count everything.
        labels: names of the classes, for messages and for mIoU16 and mIoU13.
        no_class: value in a prediction that says "none of these classes", as a `LabelMap` gives
            255; its pixels count as missed. None: such a prediction is an error.

    Attributes:
        counts: int64, (num_classes, num_classes): true class, predicted class.
        missed: int64, (num_classes,): pixels of each true class where nothing was predicted.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = IGNORED,
        *,
        labels: Sequence[str] | None = None,
        no_class: int | None = None,
    ) -> None:
        if not 1 <= num_classes <= _MOST:
            raise EvaluationError(f"{num_classes} classes; a confusion matrix has 1 to {_MOST}.")
        if labels is not None and len(labels) != num_classes:
            raise EvaluationError(
                f"{len(labels)} labels for {num_classes} classes. Give one name for each."
            )
        if no_class is not None and 0 <= no_class < num_classes:
            raise EvaluationError(f"no_class = {no_class} is one of the {num_classes} classes.")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.labels = tuple(labels) if labels is not None else None
        self.no_class = no_class
        self.counts: Counts = np.zeros((num_classes, num_classes), np.int64)
        self.missed: Counts = np.zeros(num_classes, np.int64)

    def update(self, prediction: Labels, target: Labels) -> None:
        """Count one image, or a batch of one shape.

        Args:
            prediction: integers of any shape, 0 to `num_classes` - 1 wherever the truth counts.
            target: integers of the same shape, or `ignore_index`.

        Raises:
            EvaluationError: shapes differ, values are no integers or no class. Nothing is counted.
        """
        prediction, target = np.asarray(prediction), np.asarray(target)
        if prediction.shape != target.shape:
            raise EvaluationError(
                f"the prediction is {_size(prediction)}, the truth {_size(target)}. Predict at the "
                "size of the labels."
            )
        for name, array in (("prediction", prediction), ("truth", target)):
            if array.dtype.kind not in "iub":
                raise EvaluationError(
                    f"the {name} holds {array.dtype} values, not label indices. Take the argmax of "
                    "scores over classes, or name the column of the labels."
                )
        ignored = self.ignore_index
        if ignored is not None and not 0 <= ignored < 256:
            counted = target != ignored
            prediction, target = prediction[counted], target[counted]
        if target.size:
            small, true = _as_bytes(prediction), _as_bytes(target)
            if small is None or true is None:
                counts = self._count(prediction, target)
            else:
                counts = self._count_bytes(small, true)
            self.counts += counts[:, : self.num_classes]
            self.missed += counts[:, self.num_classes]

    def _count_bytes(self, prediction: NDArray[np.uint8], target: NDArray[np.uint8]) -> Counts:
        """Count whatever pairs there are without a mask, then look at what was found.

        A mask costs as much as the count itself. Pieces stay in the processor's cache.
        """
        width = int(prediction.max()) + 1
        a, b = target.ravel(), prediction.ravel()
        found = np.zeros(256 * width, np.int64)
        pairs = np.empty(min(a.size, _PIECE), np.uint16)  # at most 255 * 256 + 255
        for start in range(0, a.size, _PIECE):
            piece = a[start : start + _PIECE]
            pair = pairs[: piece.size]
            np.multiply(piece, width, out=pair, dtype=np.uint16)
            pair += b[start : start + _PIECE]
            found += np.bincount(pair, minlength=256 * width)
        table = np.zeros((256, 256), np.int64)
        table[:, :width] = found.reshape(256, width)
        if self.ignore_index is not None and 0 <= self.ignore_index < 256:
            table[self.ignore_index] = 0
        return self._checked(table)

    def _count(self, prediction: Labels, target: Labels) -> Counts:
        """Count values of any size."""
        if self.ignore_index is not None:
            counted = target != self.ignore_index
            prediction, target = prediction[counted], target[counted]
        width = self.num_classes + 1
        if not target.size:
            return np.zeros((self.num_classes, width), np.int64)
        outside = (prediction >= self.num_classes) | (prediction < 0)
        none = prediction == self.no_class if self.no_class is not None else np.zeros_like(outside)
        if (outside & ~none).any():
            self._refuse_prediction(np.unique(prediction[outside & ~none]).tolist())
        outside = (target >= self.num_classes) | (target < 0)
        if outside.any():
            self._refuse_target(np.unique(target[outside]).tolist())
        column = np.where(none, self.num_classes, prediction.astype(np.int64))
        pairs = target.astype(np.int64) * width + column
        counts: Counts = np.bincount(pairs.ravel(), minlength=self.num_classes * width)
        return counts.reshape(self.num_classes, width)

    def _checked(self, found: Counts) -> Counts:
        """Counts of all pairs of bytes -> (classes, classes + 1), the last for "no class"."""
        n = min(self.num_classes, 256)
        allowed = np.arange(256) < n
        counts = np.zeros((self.num_classes, self.num_classes + 1), np.int64)
        counts[:n, :n] = found[:n, :n]
        if self.no_class is not None and 0 <= self.no_class < 256:
            allowed[self.no_class] = True
            counts[:n, -1] = found[:n, self.no_class]
        if found[n:].any():
            self._refuse_target((n + np.flatnonzero(found[n:].any(axis=1))).tolist())
        if found[:, ~allowed].any():
            self._refuse_prediction(np.flatnonzero(~allowed & found.any(axis=0)).tolist())
        return counts

    def _refuse_prediction(self, values: list[int]) -> None:
        raise EvaluationError(
            f"the prediction holds {_few(values)}, but the classes are 0 to "
            f"{self.num_classes - 1}. Map the model's labels to those of the data set."
        )

    def _refuse_target(self, values: list[int]) -> None:
        ignored = "nothing" if self.ignore_index is None else self.ignore_index
        raise EvaluationError(
            f"the truth holds {_few(values)}, but the classes are 0 to {self.num_classes - 1} and "
            f"{ignored} is ignored. Name the label space of the data set, or reduce its labels."
        )

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Counts of both; neither changes.

        Raises:
            EvaluationError: they count different classes.
        """
        if not isinstance(other, ConfusionMatrix):
            return NotImplemented
        if self._settings() != other._settings():
            raise EvaluationError(
                "confusion matrices of different classes or settings cannot be added. Evaluate "
                "both with the same ones."
            )
        total = self._empty()
        total.counts = self.counts + other.counts
        total.missed = self.missed + other.missed
        return total

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConfusionMatrix):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def _settings(self) -> tuple[Any, ...]:
        return self.num_classes, self.ignore_index, self.labels, self.no_class

    def _empty(self) -> ConfusionMatrix:
        return ConfusionMatrix(
            self.num_classes, self.ignore_index, labels=self.labels, no_class=self.no_class
        )

    def scores(self) -> SemanticScores:
        """What the counts amount to."""
        found = np.diagonal(self.counts)
        true = self.counts.sum(axis=1) + self.missed
        union = true + self.counts.sum(axis=0) - found
        iou = _ratio(found, union)
        accuracy = _ratio(found, true)
        total = int(true.sum())
        occurs = true > 0
        weighted = float((iou[occurs] * true[occurs]).sum() / total) if total else np.nan
        return SemanticScores(
            miou=known_mean(iou),
            pixel_accuracy=int(found.sum()) / total if total else np.nan,
            mean_accuracy=known_mean(accuracy),
            frequency_weighted_iou=weighted,
            iou=iou,
            class_accuracy=accuracy,
            miou16=self._mean_over("synthia-16", iou),
            miou13=self._mean_over("synthia-13", iou),
            labels=self.labels,
        )

    def _mean_over(self, space: str, iou: NDArray[np.float64]) -> float | None:
        mine, wanted = compared(self.labels or (), label_space(space).labels)
        if not set(wanted) <= set(mine):
            return None
        return known_mean(iou[[mine.index(label) for label in wanted]])

    def to_dict(self) -> dict[str, Any]:
        """The state, as JSON takes it."""
        return {
            "num_classes": self.num_classes,
            "ignore_index": self.ignore_index,
            "labels": list(self.labels) if self.labels is not None else None,
            "no_class": self.no_class,
            "counts": self.counts.tolist(),
            "missed": self.missed.tolist(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ConfusionMatrix:
        """The inverse of `to_dict`.

        Raises:
            EvaluationError: that is no such state.
        """
        try:
            matrix = cls(
                state["num_classes"],
                state["ignore_index"],
                labels=state["labels"],
                no_class=state["no_class"],
            )
            matrix.counts = _counts(state["counts"], matrix.counts.shape)
            matrix.missed = _counts(state["missed"], matrix.missed.shape)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, EvaluationError):
                raise
            raise EvaluationError(
                f"a damaged state of a confusion matrix ({error}). Delete it and evaluate again."
            ) from error
        return matrix


def _as_bytes(array: Labels) -> NDArray[np.uint8] | None:
    """The same values as uint8, where all are 0 to 255."""
    if array.dtype == np.uint8:
        return array.astype(np.uint8, copy=False)
    if int(array.min()) < 0 or int(array.max()) > 255:
        return None
    return array.astype(np.uint8)


def _counts(values: Any, shape: tuple[int, ...]) -> Counts:
    array = np.array(values)
    if array.dtype.kind != "i" or array.shape != shape or (array < 0).any():
        raise ValueError(f"counts of shape {array.shape}, {array.dtype}")
    return array.astype(np.int64)


def _ratio(part: Counts, whole: Counts) -> NDArray[np.float64]:
    """A part of a whole, NaN where there is no whole."""
    result = np.full(len(whole), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def _size(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape)) or "a single value"


def _few(values: list[int]) -> str:
    return ", ".join(map(str, values[:4])) + (", ..." if len(values) > 4 else "")
