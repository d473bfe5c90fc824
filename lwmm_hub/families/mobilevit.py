"""MobileViT and MobileViTV2, and the atrous head of both.

transformers spells each of them in one way, on disk and in memory, so its keys are our names.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table, normed

_INVERTED_RESIDUAL = ("expand_1x1", "conv_3x3", "reduce_1x1")


def _encoder(*transformer_block: str) -> tuple[str | Repeat, ...]:
    """The order of a whole encoder; the two families differ in their transformer blocks."""
    return (
        *normed("conv_stem"),
        Repeat(
            "encoder.layer.{}",
            (
                Repeat("layer.{}", normed(*_INVERTED_RESIDUAL)),
                *normed(*_INVERTED_RESIDUAL, below="downsampling_layer."),
                *normed("conv_kxk", "conv_1x1"),
                Repeat("transformer.layer.{}", transformer_block),
                "layernorm",
                *normed("conv_projection", "fusion"),
            ),
        ),
        *normed("conv_1x1_exp"),
    )


MOBILEVIT = Table(
    name="mobilevit",
    backbone=True,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("mobilevit.", "backbone.", ""),
            signature="encoder.layer.2.transformer.layer.0.attention.attention.query.weight",
        ),
    ),
    order=_encoder(
        "layernorm_before",
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "attention.output.dense",
        "layernorm_after",
        "intermediate.dense",
        "output.dense",
    ),
)

MOBILEVITV2 = Table(
    name="mobilevitv2",
    backbone=True,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("mobilevitv2.", "backbone.", ""),
            signature=("encoder.layer.2.transformer.layer.0.attention.qkv_proj.convolution.weight"),
        ),
    ),
    order=_encoder(
        "layernorm_before",
        "attention.qkv_proj.convolution",
        "attention.out_proj.convolution",
        "layernorm_after",
        "ffn.conv1.convolution",
        "ffn.conv2.convolution",
    ),
)

MOBILEVIT_HEAD = Table(
    name="mobilevit segmentation",
    backbone=False,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("",),
            signature="segmentation_head.aspp.project.convolution.weight",
        ),
    ),
    order=(
        Repeat(
            "segmentation_head.aspp.convs.{}",
            ("convolution", "normalization", *normed("conv_1x1")),
        ),
        *normed("aspp.project", "classifier", below="segmentation_head."),
    ),
    classifier="segmentation_head.classifier.convolution.weight",
)
