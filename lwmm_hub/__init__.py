"""Layer-wise merging of segmentation models from the Hugging Face Hub.

    import lwmm_hub as lw

    plan = lw.plan("org/anchor", "org/donor")       # headers only
    result = lw.merge(plan, output="merged")        # streams, writes, describes
    model = result.load()                           # a transformers model
    result.push_to_hub("me/merged")

Names are imported when they are first used, so that `import lwmm_hub` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lwmm_hub import controls as controls
    from lwmm_hub import evaluation as evaluation
    from lwmm_hub import fitting as fitting
    from lwmm_hub.checkpoint import Checkpoint
    from lwmm_hub.converting import convert
    from lwmm_hub.drifting import measure_drift
    from lwmm_hub.errors import LwmmError
    from lwmm_hub.evaluation.comparing import compare, evaluate
    from lwmm_hub.evaluation.values import Scores
    from lwmm_hub.fitting import fit_layer_weights
    from lwmm_hub.key_map import KeyMap
    from lwmm_hub.manifest import render_card
    from lwmm_hub.matching import match
    from lwmm_hub.merge_result import MergeResult
    from lwmm_hub.pipeline import merge, plan
    from lwmm_hub.planning import MergeOptions, MergePlan, plan_merge
    from lwmm_hub.publishing import publish
    from lwmm_hub.reference import ModelReference
    from lwmm_hub.rerunning import merge_recipe
    from lwmm_hub.resolving import resolve
    from lwmm_hub.verifying import verify
    from lwmm_hub.writing import write_model

_HOME = {
    "Checkpoint": "checkpoint",
    "KeyMap": "key_map",
    "LwmmError": "errors",
    "MergeOptions": "planning",
    "MergePlan": "planning",
    "MergeResult": "merge_result",
    "ModelReference": "reference",
    "Scores": "evaluation.values",
    "compare": "evaluation.comparing",
    "convert": "converting",
    "evaluate": "evaluation.comparing",
    "fit_layer_weights": "fitting",
    "match": "matching",
    "measure_drift": "drifting",
    "merge": "pipeline",
    "merge_recipe": "rerunning",
    "plan": "pipeline",
    "plan_merge": "planning",
    "publish": "publishing",
    "render_card": "manifest",
    "resolve": "resolving",
    "verify": "verifying",
    "write_model": "writing",
}

__all__ = [
    "Checkpoint",
    "KeyMap",
    "LwmmError",
    "MergeOptions",
    "MergePlan",
    "MergeResult",
    "ModelReference",
    "Scores",
    "compare",
    "convert",
    "evaluate",
    "fit_layer_weights",
    "match",
    "measure_drift",
    "merge",
    "merge_recipe",
    "plan",
    "plan_merge",
    "publish",
    "render_card",
    "resolve",
    "verify",
    "write_model",
]


_ROOMS = ("controls", "evaluation", "fitting")  # what messages and texts name by `lw.`

if not TYPE_CHECKING:  # for type checkers every misspelt name would be one of ours

    def __getattr__(name: str) -> Any:
        if name in _ROOMS:
            return importlib.import_module(f"lwmm_hub.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'lwmm_hub' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"lwmm_hub.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*__all__, *_ROOMS, "__version__"]
