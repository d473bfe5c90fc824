"""How each family of checkpoints spells its parameters: tables and their grammar.

A family is data. To support another one, write a table beside `mit.py` and name it in `TABLES`; no
other module changes.
"""

from __future__ import annotations

from lwmm_hub.families.convnext import CONVNEXT, CONVNEXTV2
from lwmm_hub.families.dense import DPT_HEAD, GLPN_HEAD
from lwmm_hub.families.detr import DETR, DETR_MASK_HEAD
from lwmm_hub.families.dinov2 import DINOV2
from lwmm_hub.families.dinov3 import DINOV3
from lwmm_hub.families.grammar import Dialect, KeyRule, Repeat, Table
from lwmm_hub.families.mask_heads import (
    EOMT_HEAD,
    MASK2FORMER,
    MASKFORMER,
    ONEFORMER,
    PIXEL_DECODER,
)
from lwmm_hub.families.mit import MIT, SEGFORMER_HEAD
from lwmm_hub.families.mobilenet import MOBILENETV2, MOBILENETV2_HEAD
from lwmm_hub.families.mobilevit import MOBILEVIT, MOBILEVIT_HEAD, MOBILEVITV2
from lwmm_hub.families.swin import SWIN, SWINV2
from lwmm_hub.families.upernet import UPERNET_HEAD
from lwmm_hub.families.vit import VIT

# backbones first; heads in the order in which a model that has several runs them
TABLES: tuple[Table, ...] = (
    MIT,
    SWIN,
    SWINV2,
    CONVNEXT,
    CONVNEXTV2,
    VIT,
    DINOV2,
    DINOV3,
    MOBILENETV2,
    MOBILEVIT,
    MOBILEVITV2,
    SEGFORMER_HEAD,
    UPERNET_HEAD,
    DPT_HEAD,
    GLPN_HEAD,
    MOBILENETV2_HEAD,
    MOBILEVIT_HEAD,
    MASKFORMER,
    PIXEL_DECODER,
    MASK2FORMER,
    ONEFORMER,
    EOMT_HEAD,
    DETR,
    DETR_MASK_HEAD,
)

__all__ = ["TABLES", "Dialect", "KeyRule", "Repeat", "Table"]
