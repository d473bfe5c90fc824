"""The values that evaluation hands from reader to model to metric to card; numpy alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.display import counted
from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.score_table import OVERALL

if TYPE_CHECKING:
    from lwmm_hub.evaluation.reporting import Report

Labels = NDArray[np.integer[Any]]

IGNORED = 255
"""The label that is counted nowhere, in a semantic map of up to 255 classes after it was read."""

WIDE_IGNORED = 65535
"""The same where there are over 255 classes, whose labels take 16 bits (as ADE20K-full's files)."""

TASKS = ("semantic", "panoptic", "classification", "detection")


def known_mean(values: NDArray[np.float64]) -> float:
    """Mean of what is not NaN; NaN where all is.

    >>> known_mean(np.array([0.5, np.nan, 1.0]))
    0.75
    """
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else np.nan


@dataclass(frozen=True)
class Segment:
    """One region of a panoptic map.

    Attributes:
        id: its value in the map; above 0.
        category: index of its class in the label space.
        is_crowd: several things drawn as one, which is neither to be found nor missed (COCO).
    """

    id: int
    category: int
    is_crowd: bool = False


@dataclass(frozen=True, eq=False)
class Panoptic:
    """A panoptic map: every pixel belongs to one segment or to none.

    Attributes:
        ids: int32, (height, width); 0 is void.
        segments: one for each other value of `ids`.
    """

    ids: NDArray[np.int32]
    segments: tuple[Segment, ...]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Objects of one image, as truth or as prediction.

    Attributes:
        corners: float32, (objects, 4): left, top, right, bottom in pixels of the image.
        categories: integers, (objects,): index of each class in the label space.
        confidences: float32, (objects,): how sure the model is; None in a truth.
        is_crowd: bool, (objects,); None where no object is a crowd.
        areas: float32, (objects,) in pixels: what COCO sorts a true object by into small, medium
            and large (its mask's area); None for the areas of the boxes.
    """

    corners: NDArray[np.float32]
    categories: Labels
    confidences: NDArray[np.float32] | None = None
    is_crowd: NDArray[np.bool_] | None = None
    areas: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """One image of a data set and what is true of it.

    Attributes:
        name: unique in the data set; names the file or the row in messages.
        image: uint8 RGB, (height, width, 3).
        semantic: label indices, (height, width); what the label space ignores is not counted.
        panoptic: the panoptic truth, of the same size.
        label: class index of the whole image (classification).
        boxes: the objects in it (detection).
    """

    name: str
    image: NDArray[np.uint8]
    semantic: Labels | None = None
    panoptic: Panoptic | None = None
    label: int | None = None
    boxes: Boxes | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one image, at the image's own size.

    Attributes:
        semantic: label indices, (height, width); what the label space ignores is none of them.
        panoptic: segments and the map of their ids.
        label: class index of the whole image; -1 for none of the data set's.
        boxes: objects, with confidences.
        probabilities: float32, (classes,) of the model, of the whole image (classification).
    """

    semantic: Labels | None = None
    panoptic: Panoptic | None = None
    label: int | None = None
    boxes: Boxes | None = None
    probabilities: NDArray[np.float32] | None = None


PerClass = Mapping[str, float]


@dataclass(frozen=True, repr=False)
class Scores:
    """What one model scored on one data set: fractions of 1, classes in label order.

    None is a score that does not apply; NaN is one that does, of classes that occur nowhere. Scores
    of classes are empty where they do not apply.

    Attributes:
        reference: the model, as given.
        commit: its commit on the Hub, if it came from there.
        task: one of `TASKS`.
        images: how many were scored.
        miou: mean of `iou` over the classes that occur.
        pixel_accuracy: labelled pixels whose class is right.
        mean_accuracy: mean of `class_accuracy` over the classes that the truth has.
        iou: class -> intersection over union; has NaN for a class that occurs nowhere.
        pq, sq, rq: panoptic, segmentation and recognition quality, means over classes.
        pq_per_class: class -> PQ.
        images_per_second: of the whole run, reading and scoring included.
        peak_memory_mb: peak resident memory, 10**6 bytes.
        class_accuracy: class -> part of its pixels (semantic) or images (classification) found.
        frequency_weighted_iou: mean of `iou` weighted by how many pixels are of the class.
        miou16, miou13: mean of `iou` over SYNTHIA's 16 and 13 classes.
        pq_things, sq_things, rq_things, pq_stuff, sq_stuff, rq_stuff: means over things and stuff.
        sq_per_class, rq_per_class: class -> SQ, RQ.
        accuracy: images whose class is right.
        known_accuracy: mean per-class accuracy over classes that the model was trained on.
        unknown_accuracy: part of the images of other classes that were called unknown.
        h_score: harmonic mean of `known_accuracy` and `unknown_accuracy`.
        map50, map: mean average precision at IoU 0.5, and over IoU 0.50 to 0.95 (COCO).
        ap_per_class: class -> average precision over IoU 0.50 to 0.95.
    """

    reference: str
    commit: str | None
    task: str
    images: int
    miou: float | None = None
    pixel_accuracy: float | None = None
    mean_accuracy: float | None = None
    iou: PerClass = field(default_factory=dict)
    pq: float | None = None
    sq: float | None = None
    rq: float | None = None
    pq_per_class: PerClass = field(default_factory=dict)
    images_per_second: float | None = None
    peak_memory_mb: float | None = None
    class_accuracy: PerClass = field(default_factory=dict)
    frequency_weighted_iou: float | None = None
    miou16: float | None = None
    miou13: float | None = None
    pq_things: float | None = None
    sq_things: float | None = None
    rq_things: float | None = None
    pq_stuff: float | None = None
    sq_stuff: float | None = None
    rq_stuff: float | None = None
    sq_per_class: PerClass = field(default_factory=dict)
    rq_per_class: PerClass = field(default_factory=dict)
    accuracy: float | None = None
    known_accuracy: float | None = None
    unknown_accuracy: float | None = None
    h_score: float | None = None
    map50: float | None = None
    map: float | None = None
    ap_per_class: PerClass = field(default_factory=dict)

    def __repr__(self) -> str:  # of all fields and classes it would fill a notebook
        overall = [(metric.title, getattr(self, metric.field)) for metric in OVERALL]
        told = [f"{title} {value:.2%}" for title, value in overall if value is not None]
        return f"<Scores of {self.reference} on {counted(self.images, 'image')}: {', '.join(told)}>"

    def __str__(self) -> str:
        return self._alone().table()

    def _repr_html_(self) -> str:
        return self._alone().table_html()

    def _alone(self) -> Report:
        from lwmm_hub.evaluation.reporting import Report

        return Report({}, (self.reference,), (self,))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: NaN is null, and a score that does not apply is null or left out."""
        document: dict[str, Any] = {}
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            applies = bool(value) if name in _PER_CLASS else value is not None
            if applies or name in _ALWAYS:
                document[name] = _without_nan(value) if applies else None
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Scores:
        """The inverse of `to_dict`.

        Raises:
            EvaluationError: a field is unknown, missing, or not what it should be.
        """
        if not isinstance(document, Mapping):
            raise EvaluationError(
                f"scores are an object, not {type(document).__name__}. Evaluate again."
            )
        known = {f.name for f in fields(cls)}
        wrong = sorted(set(document) - known) + sorted(_REQUIRED - set(document))
        if wrong:
            raise EvaluationError(
                f"scores with an unknown or missing field: {', '.join(wrong)}. Evaluate again with "
                "this version of lwmm-hub."
            )
        if document["task"] not in TASKS:
            raise EvaluationError(
                f"scores of the task {document['task']!r}; known are {', '.join(TASKS)}."
            )
        values = {name: _read(name, value, document) for name, value in document.items()}
        return cls(**values)


_TEXT = {"reference", "commit", "task"}
_REQUIRED = {"reference", "task", "images"}
# Always in the JSON, null where they do not apply -> the per-class scores that say whether they do.
_ALWAYS: dict[str, str | None] = {
    "commit": None,
    "miou": "iou",
    "pixel_accuracy": "iou",
    "mean_accuracy": "iou",
    "iou": None,
    "pq": "pq_per_class",
    "sq": "pq_per_class",
    "rq": "pq_per_class",
    "pq_per_class": None,
    "images_per_second": None,
    "peak_memory_mb": None,
}
_PER_CLASS = {f.name for f in fields(Scores) if "PerClass" in str(f.type)}


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(score) for name, score in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _read(name: str, value: Any, document: Mapping[str, Any]) -> Any:
    """One field of a document; null is NaN where the score applies."""
    if name in _TEXT:
        if isinstance(value, str) or (value is None and name == "commit"):
            return value
    elif name in _PER_CLASS and isinstance(value, Mapping):
        return {str(label): _number(f"{name}.{label}", score) for label, score in value.items()}
    elif name == "images":
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    elif value is None and name in _ALWAYS:
        if name in _PER_CLASS:
            return {}
        decider = _ALWAYS[name]
        return math.nan if decider and document.get(decider) else None
    elif name not in _PER_CLASS:
        return _number(name, value)
    raise EvaluationError(f"scores with {name} = {value!r}. Evaluate again.")


def _number(name: str, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise EvaluationError(f"scores with {name} = {value!r}, not a number. Evaluate again.")
    return float(value)
