"""Write any readable checkpoint as safetensors: in its own keys, or as a class of transformers."""

from __future__ import annotations

from lwmm_hub.converting.drafting import ConfigDraft, Described
from lwmm_hub.converting.running import ConversionResult, convert
from lwmm_hub.converting.targets import TARGETS, Spelled, Target, spell_for_transformers

__all__ = [
    "TARGETS",
    "ConfigDraft",
    "ConversionResult",
    "Described",
    "Spelled",
    "Target",
    "convert",
    "spell_for_transformers",
]
