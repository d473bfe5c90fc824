"""How each family of checkpoints spells its parameters: tables and their grammar.

A family is data. To support another one, write a table beside `mit.py` and name it in `TABLES`; no
other module changes.
"""

from __future__ import annotations

from lwmm_hub.families.convnext import CONVNEXT, CONVNEXTV2
from lwmm_hub.families.dinov2 import DINOV2
from lwmm_hub.families.grammar import Dialect, KeyRule, Repeat, Table
from lwmm_hub.families.mit import MIT, SEGFORMER_HEAD
from lwmm_hub.families.swin import SWIN, SWINV2
from lwmm_hub.families.vit import VIT

TABLES: tuple[Table, ...] = (
    MIT,
    SWIN,
    SWINV2,
    CONVNEXT,
    CONVNEXTV2,
    VIT,
    DINOV2,
    SEGFORMER_HEAD,
)

__all__ = ["TABLES", "Dialect", "KeyRule", "Repeat", "Table"]
