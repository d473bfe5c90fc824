"""How each family of checkpoints spells its parameters: tables and their grammar.

A family is data. To support another one, write a table beside `mit.py` and name it in `TABLES`; no
other module changes.
"""

from __future__ import annotations

from lwmm_hub.families.conmix import BOTTLENECK_CLASSIFIER, R50_VIT
from lwmm_hub.families.convnext import CONVNEXT, CONVNEXTV2
from lwmm_hub.families.daformer import (
    DAFORMER_HEAD,
    EDAPS_INSTANCES,
    HRDA_ATTENTION,
    PIPA_TRAINING,
)
from lwmm_hub.families.deeplab import (
    ASPP_HEAD,
    DEEPLABV2_AUXILIARY,
    DEEPLABV2_HEAD,
    DEEPLABV3_HEAD,
)
from lwmm_hub.families.dense import DPT_HEAD, GLPN_HEAD
from lwmm_hub.families.detectors import FASTER_RCNN, MASK_RCNN
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
from lwmm_hub.families.resnet import RESNET, RESNET_STEM
from lwmm_hub.families.swin import SWIN, SWINV2
from lwmm_hub.families.upernet import UPERNET_HEAD
from lwmm_hub.families.vit import VIT

# Backbones first; within both groups in the order of depth where a model has several.
TABLES: tuple[Table, ...] = (
    MIT,
    RESNET_STEM,
    RESNET,
    SWIN,
    SWINV2,
    CONVNEXT,
    CONVNEXTV2,
    R50_VIT,
    VIT,
    DINOV2,
    DINOV3,
    MOBILENETV2,
    MOBILEVIT,
    MOBILEVITV2,
    PIPA_TRAINING,
    SEGFORMER_HEAD,
    DEEPLABV2_AUXILIARY,
    DEEPLABV2_HEAD,
    DEEPLABV3_HEAD,
    ASPP_HEAD,
    BOTTLENECK_CLASSIFIER,
    FASTER_RCNN,
    MASK_RCNN,
    HRDA_ATTENTION,
    EDAPS_INSTANCES,
    DAFORMER_HEAD,
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
