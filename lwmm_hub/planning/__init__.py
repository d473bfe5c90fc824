"""KeyMap + layer weights -> `MergePlan`: how every tensor of the result is made."""

from __future__ import annotations

from lwmm_hub.options import MergeOptions, output_dtype, parse_size
from lwmm_hub.planning.making import plan_merge, written_bytes
from lwmm_hub.planning.values import Cost, Layer, MergedTensor, MergePlan, PlannedModel

__all__ = [
    "Cost",
    "Layer",
    "MergeOptions",
    "MergePlan",
    "MergedTensor",
    "PlannedModel",
    "output_dtype",
    "parse_size",
    "plan_merge",
    "written_bytes",
]
