"""Detection of objects: COCO's average precision, counted by pycocotools (an optional extra).

What is kept between images are the boxes themselves: average precision ranks the detections of a
whole data set, so that no smaller state adds up. At most 100 detections an image count, as in COCO.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.label_spaces import shorten
from lwmm_hub.evaluation.values import Boxes, known_mean


@dataclass(frozen=True, eq=False)
class DetectionScores:
    """Average precisions as fractions of 1; NaN where no object of the class is in the truth.

    Attributes:
        map: mean over classes and over IoU 0.50, 0.55, ... 0.95 (COCO's AP).
        map50: mean over classes at IoU 0.5 (what papers on Foggy Cityscapes report).
        ap_per_class: float64, (classes,): over IoU 0.50 to 0.95.
        ap50_per_class: float64, (classes,): at IoU 0.5.
        labels: names of the classes.
    """

    map: float
    map50: float
    ap_per_class: NDArray[np.float64]
    ap50_per_class: NDArray[np.float64]
    labels: tuple[str, ...]

    def fields(self) -> dict[str, Any]:
        """As `Scores` has them: numbers, and a mapping of class names for `ap_per_class`."""
        return {
            "map": self.map,
            "map50": self.map50,
            "ap_per_class": dict(zip(self.labels, self.ap_per_class.tolist(), strict=True)),
        }


class DetectionResults:
    """True and predicted boxes of a data set, image by image.

    Args:
        labels: names of the classes; categories of boxes are indices into them.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        if not labels:
            raise EvaluationError("no classes to detect. Give the names of the classes.")
        self.labels = tuple(labels)
        self._images: list[tuple[Boxes, Boxes]] = []

    def __len__(self) -> int:
        return len(self._images)

    def update(self, prediction: Boxes, truth: Boxes) -> None:
        """Add one image.

        Raises:
            EvaluationError: numbers of boxes, classes or confidences disagree, a class is unknown,
                or a box ends before it begins. Nothing is added.
        """
        self._check(prediction, "prediction")
        self._check(truth, "truth")
        if prediction.confidences is None:
            raise EvaluationError("predicted boxes without confidences cannot be ranked.")
        self._images.append((prediction, truth))

    def _check(self, boxes: Boxes, whose: str) -> None:
        count = len(boxes.categories)
        parts = {
            "confidences": boxes.confidences,
            "crowd marks": boxes.is_crowd,
            "areas": boxes.areas,
        }
        for name, part in parts.items():
            if part is not None and part.shape != (count,):
                raise EvaluationError(f"{count} boxes in the {whose}, but {len(part)} {name}.")
        corners = np.asarray(boxes.corners)
        if corners.shape != (count, 4) or not np.isfinite(corners).all():
            raise EvaluationError(
                f"boxes of the {whose} are {' x '.join(map(str, corners.shape))}, not {count} x 4 "
                "finite numbers: left, top, right, bottom."
            )
        if (corners[:, 2:] < corners[:, :2]).any():
            raise EvaluationError(
                f"a box of the {whose} ends before it begins. Corners are left, top, right, "
                "bottom; turn COCO's width and height into them."
            )
        outside = [c for c in boxes.categories.tolist() if not 0 <= c < len(self.labels)]
        if outside:
            raise EvaluationError(
                f"the {whose} has the classes {shorten(sorted(set(outside)))}, but there are "
                f"{len(self.labels)}. Map the model's labels to those of the data set."
            )

    def __add__(self, other: DetectionResults) -> DetectionResults:
        """Images of both, one after the other; neither changes.

        Raises:
            EvaluationError: they have different classes.
        """
        if not isinstance(other, DetectionResults):
            return NotImplemented
        if self.labels != other.labels:
            raise EvaluationError(
                "detections of different classes cannot be added. Evaluate both with the same ones."
            )
        total = DetectionResults(self.labels)
        total._images = self._images + other._images
        return total

    def scores(self) -> DetectionScores:
        """Average precision over all images.

        Raises:
            EvaluationError: pycocotools is not installed.
        """
        evaluation = self._evaluate()
        count = len(self.labels)
        ap, ap50 = np.full(count, np.nan), np.full(count, np.nan)
        if evaluation is not None:
            # (IoU, recall, class, area, most detections); -1 where the truth has no such object
            precision = evaluation["precision"][:, :, :, 0, -1]
            for k in range(count):
                if (precision[:, :, k] > -1).any():
                    ap[k] = precision[:, :, k].mean()
                    ap50[k] = precision[0, :, k].mean()
        return DetectionScores(known_mean(ap), known_mean(ap50), ap, ap50, self.labels)

    def _evaluate(self) -> Any:
        """What pycocotools finds; None without any image."""
        try:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        except ImportError as error:
            raise EvaluationError(
                "average precision needs pycocotools. Install it with: pip install "
                "'lwmm-hub[detection]'"
            ) from error
        if not self._images:
            return None
        with contextlib.redirect_stdout(io.StringIO()):  # it prints, and cannot be told not to
            sides = []
            for annotations in (self._truths(), self._predictions()):
                coco = COCO()
                coco.dataset = {
                    "info": {},
                    "images": [{"id": i} for i in range(len(self._images))],
                    "categories": [{"id": k} for k in range(len(self.labels))],
                    "annotations": annotations,
                }
                coco.createIndex()
                sides.append(coco)
            evaluator = COCOeval(*sides, iouType="bbox")
            evaluator.evaluate()
            evaluator.accumulate()
        return evaluator.eval

    def _truths(self) -> list[dict[str, Any]]:
        return [
            {**box, "id": number, "iscrowd": int(box["iscrowd"])}
            for number, box in enumerate(
                (box for i, (_, truth) in enumerate(self._images) for box in _boxes(truth, i)), 1
            )
        ]

    def _predictions(self) -> list[dict[str, Any]]:
        return [
            {**box, "id": number, "iscrowd": 0}
            for number, box in enumerate(
                (box for i, (found, _) in enumerate(self._images) for box in _boxes(found, i)), 1
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """The state, as JSON takes it."""
        return {
            "labels": list(self.labels),
            "images": [[_to_dict(boxes) for boxes in image] for image in self._images],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> DetectionResults:
        """The inverse of `to_dict`.

        Raises:
            EvaluationError: that is no such state.
        """
        try:
            results = cls(state["labels"])
            for prediction, truth in state["images"]:
                results.update(_from_dict(prediction), _from_dict(truth))
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(
                f"a damaged state of detections ({error}). Delete it and evaluate again."
            ) from error
        return results


def _boxes(boxes: Boxes, image: int) -> list[dict[str, Any]]:
    """As COCO's annotations have them: left, top, width, height."""
    corners = np.asarray(boxes.corners, np.float64).reshape(-1, 4)
    sizes = corners[:, 2:] - corners[:, :2]
    areas = sizes.prod(axis=1) if boxes.areas is None else boxes.areas
    crowd = np.zeros(len(sizes), bool) if boxes.is_crowd is None else boxes.is_crowd
    scores = np.zeros(len(sizes)) if boxes.confidences is None else boxes.confidences
    return [
        {
            "image_id": image,
            "category_id": int(boxes.categories[i]),
            "bbox": [*corners[i, :2].tolist(), *sizes[i].tolist()],
            "area": float(areas[i]),
            "iscrowd": bool(crowd[i]),
            "score": float(scores[i]),
        }
        for i in range(len(sizes))
    ]


_PARTS = {
    "corners": np.float32,
    "categories": np.int64,
    "confidences": np.float32,
    "is_crowd": np.bool_,
    "areas": np.float32,
}


def _to_dict(boxes: Boxes) -> dict[str, Any]:
    parts = {name: getattr(boxes, name) for name in _PARTS}
    return {name: part.tolist() for name, part in parts.items() if part is not None}


def _from_dict(state: Mapping[str, Any]) -> Boxes:
    parts: dict[str, Any] = {
        name: np.array(state[name], kind) for name, kind in _PARTS.items() if name in state
    }
    return Boxes(**{**parts, "corners": parts["corners"].reshape(-1, 4)})
