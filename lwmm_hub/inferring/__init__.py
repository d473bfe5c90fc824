"""Match by values what neither names, tables nor a prefix match: only where the user asks for it.

Tensors of at least two dimensions are compared with each other; the rest follows its module.
"""

from __future__ import annotations

from lwmm_hub.inferring.matching_values import Inferred, infer_pairs, match_by

__all__ = [
    "Inferred",
    "infer_pairs",
    "match_by",
]
