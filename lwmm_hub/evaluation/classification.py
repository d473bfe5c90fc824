"""Classification of whole images, closed and open-partial.

Open-partial, as on Office-31 and Office-Home: a model knows some classes, the data set has images
of others, and those are to be called unknown. The H-score is the harmonic mean of how many of both
kinds are right (Fu et al. 2020), as GLC reports it, with two differences: no 1e-5 is added to the
denominators, and a shared class without any image is left out of the mean, where GLC counts it as
0. `office` has the splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.label_spaces import shorten
from lwmm_hub.evaluation.values import known_mean

UNKNOWN_ABOVE = 0.55
"""Entropy, as a part of the largest possible one, above which GLC calls an image unknown (w_0)."""

NO_CLASS = -1
"""A prediction that is none of the classes: it is wrong, and nobody's false alarm."""


@dataclass(frozen=True, eq=False)
class ClassificationScores:
    """Fractions of 1; NaN for what occurs nowhere.

    Attributes:
        accuracy: images whose class is right; "unknown" is a class where that is scored.
        mean_accuracy: mean of `class_accuracy` over the classes that the truth has.
        class_accuracy: float64, (classes,): part of each known class's images that is right.
        known_accuracy: `mean_accuracy` of the known classes; None where nothing can be unknown.
        unknown_accuracy: part of the images of other classes that is called unknown; None likewise.
        h_score: harmonic mean of the two before; None likewise.
        labels: names of the classes, if given.
    """

    accuracy: float
    mean_accuracy: float
    class_accuracy: NDArray[np.float64]
    known_accuracy: float | None = None
    unknown_accuracy: float | None = None
    h_score: float | None = None
    labels: tuple[str, ...] | None = None

    def fields(self) -> dict[str, Any]:
        """As `Scores` has them: numbers, and a mapping of class names for the array."""
        labels = self.labels or tuple(str(i) for i in range(len(self.class_accuracy)))
        return {
            "accuracy": self.accuracy,
            "mean_accuracy": self.mean_accuracy,
            "class_accuracy": dict(zip(labels, self.class_accuracy.tolist(), strict=True)),
            "known_accuracy": self.known_accuracy,
            "unknown_accuracy": self.unknown_accuracy,
            "h_score": self.h_score,
        }


class ClassificationCounts:
    """Counts of the images of each class, and of those that are right, added up over a data set.

    Two numbers a class, however many classes there are.

    >>> counts = ClassificationCounts(2, with_unknown=True)
    >>> counts.update([0, 1, 2, 0], [0, 0, 2, 2])  # 2 is unknown
    >>> scores = counts.scores()
    >>> scores.known_accuracy, scores.unknown_accuracy, scores.h_score
    (0.5, 0.5, 0.5)

    Args:
        num_classes: classes that the model knows; 0 to `num_classes` - 1.
        with_unknown: whether `num_classes` itself stands for "unknown", in truth and prediction.
        labels: names of the known classes.

    Attributes:
        true: int64, (classes,): images of each class; unknown last, where that is scored.
        right: int64, (classes,): those of them whose prediction is right.
    """

    def __init__(
        self, num_classes: int, *, with_unknown: bool = False, labels: Sequence[str] | None = None
    ) -> None:
        if num_classes < 1:
            raise EvaluationError(f"{num_classes} classes: give a number from 1 on.")
        if labels is not None and len(labels) != num_classes:
            raise EvaluationError(
                f"{len(labels)} labels for {num_classes} classes. Give one name for each."
            )
        self.num_classes = num_classes
        self.with_unknown = with_unknown
        self.labels = tuple(labels) if labels is not None else None
        self.true = np.zeros(num_classes + with_unknown, np.int64)
        self.right = np.zeros_like(self.true)

    def update(self, predictions: ArrayLike, labels: ArrayLike) -> None:
        """Count images: two class indices (`NO_CLASS` is a prediction, too), or two arrays.

        Raises:
            EvaluationError: an index that is no class, or not as many of the one as of the other.
                Nothing is counted.
        """
        found, true = np.atleast_1d(predictions), np.atleast_1d(labels)
        if found.shape != true.shape:
            raise EvaluationError(
                f"{found.size} predictions for {true.size} labels. Give one class index for each."
            )
        for name, array, least in (("prediction", found, NO_CLASS), ("truth", true, 0)):
            if array.size and array.dtype.kind not in "iub":
                raise EvaluationError(
                    f"the {name} holds {array.dtype} values, not class indices. Take the argmax of "
                    "scores over classes."
                )
            outside = (array < least) | (array >= len(self.true))
            if outside.any():
                raise EvaluationError(
                    f"the {name} holds {shorten(np.unique(array[outside]))}, but the classes are 0 "
                    f"to {len(self.true) - 1}. Map the model's labels to those of the data set."
                )
        if true.size:
            true = true.astype(np.int64)
            self.true += np.bincount(true, minlength=len(self.true))
            self.right += np.bincount(true[found == true], minlength=len(self.true))

    def __add__(self, other: ClassificationCounts) -> ClassificationCounts:
        """Counts of both; neither changes.

        Raises:
            EvaluationError: they count different classes.
        """
        if not isinstance(other, ClassificationCounts):
            return NotImplemented
        if self._settings() != other._settings():
            raise EvaluationError(
                "counts of different classes cannot be added. Evaluate both with the same ones."
            )
        total = ClassificationCounts(
            self.num_classes, with_unknown=self.with_unknown, labels=self.labels
        )
        total.true, total.right = self.true + other.true, self.right + other.right
        return total

    def _settings(self) -> tuple[Any, ...]:
        return self.num_classes, self.with_unknown, self.labels

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClassificationCounts):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def scores(self) -> ClassificationScores:
        """What the counts amount to."""
        rates = np.full(len(self.true), np.nan)
        np.divide(self.right, self.true, out=rates, where=self.true > 0)
        total = int(self.true.sum())
        accuracy = int(self.right.sum()) / total if total else np.nan
        known = rates[: self.num_classes]
        mean = known_mean(known)
        if not self.with_unknown:
            return ClassificationScores(accuracy, mean, known, labels=self.labels)
        unknown = float(rates[-1])
        return ClassificationScores(
            accuracy,
            known_mean(rates),
            known,
            known_accuracy=mean,
            unknown_accuracy=unknown,
            h_score=2 * mean * unknown / (mean + unknown) if mean + unknown != 0 else 0.0,
            labels=self.labels,
        )

    def to_dict(self) -> dict[str, Any]:
        """The state, as JSON takes it."""
        return {
            "num_classes": self.num_classes,
            "with_unknown": self.with_unknown,
            "labels": list(self.labels) if self.labels is not None else None,
            "true": self.true.tolist(),
            "right": self.right.tolist(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ClassificationCounts:
        """The inverse of `to_dict`.

        Raises:
            EvaluationError: that is no such state.
        """
        try:
            counts = cls(
                state["num_classes"], with_unknown=state["with_unknown"], labels=state["labels"]
            )
            parts = [np.array(state[name]) for name in ("true", "right")]
            if not all(p.dtype.kind == "i" and p.shape == counts.true.shape for p in parts):
                raise ValueError("counts of another shape")
            counts.true, counts.right = (part.astype(np.int64) for part in parts)
            if (counts.right < 0).any() or (counts.right > counts.true).any():
                raise ValueError("more are right than there are")
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(
                f"a damaged state of classification counts ({error}). Delete it and evaluate again."
            ) from error
        return counts


def call_unknown(probabilities: ArrayLike, above: float = UNKNOWN_ABOVE) -> NDArray[np.int64]:
    """Predicted classes, with "unknown" (= number of classes) where the model is too unsure.

    >>> call_unknown([[0.9, 0.1], [0.5, 0.5]]).tolist()
    [0, 2]

    Args:
        probabilities: (images, classes), each row adding up to 1.
        above: entropy as a part of log(classes) above which an image is unknown.

    Returns:
        int64, (images,).

    Raises:
        EvaluationError: that is no table of probabilities.
    """
    rows = np.asarray(probabilities, np.float64)
    if rows.ndim != 2 or rows.shape[1] < 2 or not np.allclose(rows.sum(axis=1), 1, atol=1e-3):
        raise EvaluationError(
            f"probabilities of shape {rows.shape} whose rows do not add up to 1. Take the softmax "
            "of a model's logits, one row an image."
        )
    safe = np.clip(rows, 1e-12, 1)
    entropy = -(rows * np.log(safe)).sum(axis=1) / np.log(rows.shape[1])
    called: NDArray[np.int64] = np.where(entropy > above, rows.shape[1], rows.argmax(axis=1))
    return called
