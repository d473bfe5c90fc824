"""How good a model is: metrics with small additive states, label spaces, and what they return.

Names are imported when they are first used, so that `import lwmm_hub.evaluation` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    "Panoptic": "values",
    "Prediction": "values",
    "Sample": "values",
    "Scores": "values",
    "Segment": "values",
}

__all__ = [
    "Boxes",
    "Panoptic",
    "Prediction",
    "Sample",
    "Scores",
    "Segment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lwmm_hub.evaluation' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lwmm_hub.evaluation.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
