"""Layer weights that are found and not given: fitted on unlabelled images, or measured.

Names are imported when they are first used, so that `import lwmm_hub.fitting` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lwmm_hub.fitting.measuring import drift_layer_weights, entropy_layer_weights
    from lwmm_hub.fitting.options import FitOptions
    from lwmm_hub.fitting.running import fit_layer_weights

_HOME = {
    "FitOptions": "options",
    "drift_layer_weights": "measuring",
    "entropy_layer_weights": "measuring",
    "fit_layer_weights": "running",
}

__all__ = ["FitOptions", "drift_layer_weights", "entropy_layer_weights", "fit_layer_weights"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lwmm_hub.fitting' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lwmm_hub.fitting.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
