"""The metrics as `evaluate.EvaluationModule`: `add`, `add_batch` and `compute`, for the Trainer.

    metric = semantic_module(19)
    metric.add_batch(predictions=maps, references=labels)
    metric.compute()["miou"]

Importing `evaluate` takes 7 to 12 s. Nothing but the functions here does it, and only when called.
Batches are counted as they come: no copy of them is kept, and none is written to the cache folder
that `evaluate` uses. What is counted is `metric.state`: add the states of several processes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.classification import ClassificationCounts
from lwmm_hub.evaluation.confusion import ConfusionMatrix
from lwmm_hub.evaluation.detection import DetectionResults
from lwmm_hub.evaluation.panoptic import Category, PanopticCounts
from lwmm_hub.evaluation.values import IGNORED, Boxes, Panoptic


class _State(Protocol):
    def scores(self) -> Any: ...


def semantic_module(
    num_classes: int,
    ignore_index: int | None = IGNORED,
    *,
    labels: Sequence[str] | None = None,
    no_class: int | None = None,
) -> Any:
    """An `EvaluationModule` of label maps: one prediction and one reference an image.

    Args: as `ConfusionMatrix` takes them.

    Returns:
        A module whose `compute` gives `miou`, `pixel_accuracy`, `mean_accuracy`, `iou`, ...
    """
    return _module(
        "lwmm_semantic",
        lambda: ConfusionMatrix(num_classes, ignore_index, labels=labels, no_class=no_class),
        lambda state, prediction, reference: state.update(prediction, reference),
    )


def panoptic_module(categories: Sequence[Category | Mapping[str, Any]]) -> Any:
    """An `EvaluationModule` of panoptic maps.

    A prediction or reference is a `Panoptic`, or a mapping with `segmentation` (the map of ids) and
    `segments_info`, as the processors of transformers give it.

    Args:
        categories: as `PanopticCounts` takes them.

    Returns:
        A module whose `compute` gives `pq`, `sq`, `rq`, `pq_things`, `pq_per_class`, ...
    """
    return _module("lwmm_panoptic", lambda: PanopticCounts(categories), _count_panoptic)


def classification_module(
    num_classes: int, *, with_unknown: bool = False, labels: Sequence[str] | None = None
) -> Any:
    """An `EvaluationModule` of class indices.

    Args: as `ClassificationCounts` takes them.

    Returns:
        A module whose `compute` gives `accuracy`, `class_accuracy` and, where there are unknown
        classes, `h_score`.
    """
    return _module(
        "lwmm_classification",
        lambda: ClassificationCounts(num_classes, with_unknown=with_unknown, labels=labels),
        lambda state, prediction, reference: state.update(prediction, reference),
    )


def detection_module(labels: Sequence[str]) -> Any:
    """An `EvaluationModule` of boxes: a prediction and a reference are `Boxes`.

    Args:
        labels: names of the classes.

    Returns:
        A module whose `compute` gives `map`, `map50` and `ap_per_class`.
    """
    return _module("lwmm_detection", lambda: DetectionResults(labels), _count_boxes)


def _module(name: str, empty: Callable[[], _State], count: Callable[[Any, Any, Any], None]) -> Any:
    return _module_class()(name, empty, count)


def _count_panoptic(state: PanopticCounts, prediction: Any, reference: Any) -> None:
    state.update(*_map_and_segments(prediction), *_map_and_segments(reference))


def _map_and_segments(value: Any) -> tuple[Any, Sequence[Any]]:
    if isinstance(value, Panoptic):
        return value.ids, value.segments
    try:
        segments = [
            {**segment, "category_id": segment["label_id"]} if "label_id" in segment else segment
            for segment in value["segments_info"]
        ]
        return value["segmentation"], segments
    except (KeyError, TypeError, IndexError) as error:
        raise EvaluationError(
            "a panoptic prediction or reference needs segmentation (a map of ids) and "
            "segments_info."
        ) from error


def _count_boxes(state: DetectionResults, prediction: Any, reference: Any) -> None:
    if not (isinstance(prediction, Boxes) and isinstance(reference, Boxes)):
        raise EvaluationError("detections are given as lwmm_hub.evaluation.Boxes.")
    state.update(prediction, reference)


@functools.cache
def _module_class() -> Any:
    """The class of the modules, made when `evaluate` is first needed."""
    import datasets
    import evaluate

    class CountingModule(evaluate.Metric):  # type: ignore[misc]
        """Counts what it is given, at once; see `lwmm_hub.evaluation.modules`."""

        def __init__(
            self, name: str, empty: Callable[[], _State], count: Callable[[Any, Any, Any], None]
        ) -> None:
            self.empty = empty
            self.count = count
            self.state = empty()
            self.added = 0
            self.called = name
            super().__init__(config_name=name)
            self.info.module_name = name  # evaluate.combine tells modules apart by it

        def _info(self) -> Any:
            return evaluate.MetricInfo(
                description=f"{self.called}: scores of lwmm-hub, from small additive counts.",
                citation="",
                inputs_description="\n\nPredictions and references: one of each an image.\n",
                features=datasets.Features(
                    {"predictions": datasets.Value("null"), "references": datasets.Value("null")}
                ),
            )

        def _build_data_dir(self) -> str:
            return str(self._data_dir_root)  # nothing is kept there, so no folder is made

        def __len__(self) -> int:
            return self.added

        def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
            """Count one image."""
            self.add_batch(
                predictions=None if prediction is None else [prediction],
                references=None if reference is None else [reference],
                **kwargs,
            )

        def add_batch(
            self, *, predictions: Any = None, references: Any = None, **kwargs: Any
        ) -> None:
            """Count several images."""
            if kwargs or predictions is None or references is None:
                raise EvaluationError(
                    f"{self.called} takes predictions and references"
                    + (f", not {', '.join(kwargs)}." if kwargs else "; one of them is missing.")
                )
            if len(predictions) != len(references):
                raise EvaluationError(
                    f"{len(predictions)} predictions for {len(references)} references. Give one "
                    "for each."
                )
            for prediction, reference in zip(predictions, references, strict=True):
                self.count(self.state, prediction, reference)
                self.added += 1

        def compute(
            self, *, predictions: Any = None, references: Any = None, **kwargs: Any
        ) -> dict[str, Any]:
            """Scores of everything added since the last time; counting begins anew."""
            if predictions is not None or references is not None or kwargs:
                self.add_batch(predictions=predictions, references=references, **kwargs)
            if not self.added:
                raise EvaluationError(f"{self.called} has nothing to score. Add a batch first.")
            scores = self.state.scores().fields()
            self.state, self.added = self.empty(), 0
            return {name: value for name, value in scores.items() if value is not None}

    return CountingModule
