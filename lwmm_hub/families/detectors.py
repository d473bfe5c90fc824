"""Two-stage detectors: the Mask R-CNN heads of mmdet (EDAPS) and those of MIC detection."""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table

MASK_RCNN = Table(
    name="mask_rcnn",
    backbone=False,
    dialects=(
        Dialect(
            "mmdet",
            prefixes=("",),
            signature="roi_head.mask_head.conv_logits.weight",
        ),
    ),
    order=(
        Repeat("neck.lateral_convs.{}", ("conv",)),
        Repeat("neck.fpn_convs.{}", ("conv",)),
        "rpn_head.rpn_conv",
        "rpn_head.rpn_cls",
        "rpn_head.rpn_reg",
        Repeat("roi_head.bbox_head.shared_fcs.{}", ("",)),
        "roi_head.bbox_head.fc_cls",
        "roi_head.bbox_head.fc_reg",
        Repeat("roi_head.mask_head.convs.{}", ("conv",)),
        "roi_head.mask_head.upsample",
        "roi_head.mask_head.conv_logits",
    ),
)

# The pyramid is built from the top: level 4 first.
_PYRAMID = (
    f"backbone.fpn.fpn_{what}{level}" for level in (4, 3, 2, 1) for what in ("inner", "layer")
)

FASTER_RCNN = Table(
    name="faster_rcnn",
    backbone=False,
    classifier="roi_heads.box.predictor.cls_score.weight",
    dialects=(
        Dialect(
            "maskrcnn-benchmark",
            prefixes=("",),
            signature="backbone.fpn.fpn_inner1.weight",
            dead={
                "rpn.anchor_generator.cell_anchors.{i}": "the geometry of the anchor boxes, fixed "
                "by the configuration"
            },
        ),
    ),
    order=(
        *_PYRAMID,
        "rpn.head.conv",
        "rpn.head.cls_logits",
        "rpn.head.bbox_pred",
        "roi_heads.box.feature_extractor.fc6",
        "roi_heads.box.feature_extractor.fc7",
        "roi_heads.box.predictor.cls_score",
        "roi_heads.box.predictor.bbox_pred",
        Repeat("da_heads.imghead.da_img_conv1_level{}", ("",)),
        Repeat("da_heads.imghead.da_img_conv2_level{}", ("",)),
        Repeat("da_heads.inshead.da_ins_fc1_level{}", ("",)),
        Repeat("da_heads.inshead.da_ins_fc2_level{}", ("",)),
        Repeat("da_heads.inshead.da_ins_fc3_level{}", ("",)),
    ),
)
