"""How good a model is: metrics with small additive states, label spaces, and what they return.

Names are imported when they are first used, so that `import lwmm_hub.evaluation` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lwmm_hub.evaluation.confusion import ConfusionMatrix
    from lwmm_hub.evaluation.label_maps import LabelMap, map_labels
    from lwmm_hub.evaluation.label_spaces import LabelSpace, label_space
    from lwmm_hub.evaluation.panoptic import PanopticCounts
    from lwmm_hub.evaluation.values import (
        Boxes,
        Panoptic,
        Prediction,
        Sample,
        Scores,
        Segment,
    )

_HOME = {
    "Boxes": "values",
    "ConfusionMatrix": "confusion",
    "LabelMap": "label_maps",
    "LabelSpace": "label_spaces",
    "Panoptic": "values",
    "PanopticCounts": "panoptic",
    "Prediction": "values",
    "Sample": "values",
    "Scores": "values",
    "Segment": "values",
    "label_space": "label_spaces",
    "map_labels": "label_maps",
}

__all__ = [
    "Boxes",
    "ConfusionMatrix",
    "LabelMap",
    "LabelSpace",
    "Panoptic",
    "PanopticCounts",
    "Prediction",
    "Sample",
    "Scores",
    "Segment",
    "label_space",
    "map_labels",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lwmm_hub.evaluation' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lwmm_hub.evaluation.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
