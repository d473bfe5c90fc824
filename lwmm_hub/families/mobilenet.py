"""MobileNetV2, which transformers spells in one way, and its atrous head."""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table, normed

MOBILENETV2 = Table(
    name="mobilenet_v2",
    backbone=True,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("mobilenet_v2.", "backbone.", ""),  # what may stand before every key
            signature="conv_stem.first_conv.convolution.weight",  # a key that only this has
        ),
    ),
    order=(  # of the last use in the forward pass
        *normed("first_conv", "expand_1x1", "conv_3x3", "reduce_1x1", below="conv_stem."),
        Repeat("layer.{}", normed("expand_1x1", "conv_3x3", "reduce_1x1")),
        *normed("conv_1x1"),
    ),
)

MOBILENETV2_HEAD = Table(
    name="mobilenet_v2 segmentation",
    backbone=False,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("",),
            signature="segmentation_head.conv_aspp.convolution.weight",
        ),
    ),
    order=normed(
        "conv_pool", "conv_aspp", "conv_projection", "classifier", below="segmentation_head."
    ),
    classifier="segmentation_head.classifier.convolution.weight",
)
