"""Match models: which parameters they share, in which depth order, and why others are left out."""

from __future__ import annotations

from lwmm_hub.key_map.averaging import NEVER_AVERAGED
from lwmm_hub.key_map.guessing import guess_warnings
from lwmm_hub.key_map.leaving import leave_out
from lwmm_hub.key_map.naming import NamedKeys, Source, name_keys
from lwmm_hub.key_map.ordering import DepthOrder, natural, natural_order, registration_order
from lwmm_hub.key_map.pairing import MATCH, OpenKeys, ValuePair, pairs_sha256
from lwmm_hub.key_map.parts import Part
from lwmm_hub.key_map.reasons import Reasons
from lwmm_hub.key_map.refusing import require_shared_backbone
from lwmm_hub.key_map.sharing import KeyMap, SharedParameter, match_keys

__all__ = [
    "MATCH",
    "NEVER_AVERAGED",
    "DepthOrder",
    "KeyMap",
    "NamedKeys",
    "OpenKeys",
    "Part",
    "Reasons",
    "SharedParameter",
    "Source",
    "ValuePair",
    "guess_warnings",
    "leave_out",
    "match_keys",
    "name_keys",
    "natural",
    "natural_order",
    "pairs_sha256",
    "registration_order",
    "require_shared_backbone",
]
