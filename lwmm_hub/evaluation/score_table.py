"""What scores are called: one table for the report of an evaluation and for a model's card."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple


class Metric(NamedTuple):
    """A field of `Scores`; all are fractions that are shown as percent.

    Attributes:
        field: its name.
        title: what people call it.
        hub_type: the type of the metric in a card's model-index; "" where a card leaves it to the
            manifest, since it varies another one.
    """

    field: str
    title: str
    hub_type: str

    @property
    def heading(self) -> str:
        """The title as a heading begins.

        >>> Metric("miou", "mIoU", "mean_iou").heading, Metric("accuracy", "accuracy", "").heading
        ('mIoU', 'Accuracy')
        """
        word = self.title.split()[0]
        return self.title[0].upper() + self.title[1:] if word.islower() else self.title


OVERALL = (
    Metric("miou", "mIoU", "mean_iou"),
    Metric("miou16", "mIoU, 16 classes", ""),
    Metric("miou13", "mIoU, 13 classes", ""),
    Metric("frequency_weighted_iou", "IoU by frequency", ""),
    Metric("pixel_accuracy", "pixel accuracy", "accuracy"),
    Metric("mean_accuracy", "mean class accuracy", "mean_accuracy"),
    Metric("pq", "PQ", "pq"),
    Metric("sq", "SQ", "sq"),
    Metric("rq", "RQ", "rq"),
    Metric("pq_things", "PQ of things", ""),
    Metric("pq_stuff", "PQ of stuff", ""),
    Metric("accuracy", "accuracy", "accuracy"),
    Metric("known_accuracy", "accuracy of known classes", "known_accuracy"),
    Metric("unknown_accuracy", "accuracy of unknown", "unknown_accuracy"),
    Metric("h_score", "H-score", "h_score"),
    Metric("map50", "mAP at IoU 0.5", "map_50"),
    Metric("map", "mAP", "map"),
)
_PER_CLASS = (
    Metric("iou", "IoU", "iou"),
    Metric("pq_per_class", "PQ", "pq"),
    Metric("ap_per_class", "AP", "average_precision"),
    Metric("class_accuracy", "accuracy", "accuracy"),
)
MOST_SHOWN = 255  # classes of a table for people; every one is in the data
# what an evaluation was of, as the Hub calls it in a card's model-index
HUB_TASKS = {
    "semantic": "image-segmentation",
    "panoptic": "image-segmentation",
    "classification": "image-classification",
    "detection": "object-detection",
}


def per_class(there: Collection[str]) -> list[Metric]:
    """The metrics that are told class by class, of the fields that scores have.

    >>> [metric.title for metric in per_class(["iou", "class_accuracy", "pq"])]
    ['IoU']
    """
    found = [metric for metric in _PER_CLASS if metric.field in there]
    if "iou" in there:  # says more than the accuracy of a class
        found = [metric for metric in found if metric.field != "class_accuracy"]
    return found
