"""The heads of the DAFormer line: DAFormer, HRDA, MIC, PiPa and EDAPS.

One semantic head has four addresses: DAFormer's and EDAPS's `decode_head.`, HRDA's and MIC's
`decode_head.head.`, and the semantic branch of EDAPS's bottom-up head. `conv_seg` is its classifier
(unlike in NVlabs' SegFormer head, which never uses it). The order is that of the forward pass.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, KeyRule, Repeat, Table, rules


def _head(name: str, branch: str = "") -> tuple[KeyRule, ...]:
    """DAFormer's embedding and its fusion by separable ASPP, as `name`; `branch` is a suffix."""
    embed, fuse = f"embed_layers{branch}", f"fuse_layer{branch}"
    aspp = f"{fuse}.aspp_modules.{{i}}"
    return rules(
        (f"{embed}.{{i}}.proj.*", f"{name}.embed.{{i}}.*"),
        (f"{aspp}.conv.*", f"{name}.aspp.{{i}}.conv.*"),
        (f"{aspp}.bn.*", f"{name}.aspp.{{i}}.bn.*"),
        (f"{aspp}.depthwise_conv.conv.*", f"{name}.aspp.{{i}}.depthwise.conv.*"),
        (f"{aspp}.depthwise_conv.bn.*", f"{name}.aspp.{{i}}.depthwise.bn.*"),
        (f"{aspp}.pointwise_conv.conv.*", f"{name}.aspp.{{i}}.pointwise.conv.*"),
        (f"{aspp}.pointwise_conv.bn.*", f"{name}.aspp.{{i}}.pointwise.bn.*"),
        (f"{fuse}.bottleneck.conv.*", f"{name}.bottleneck.conv.*"),
        (f"{fuse}.bottleneck.bn.*", f"{name}.bottleneck.bn.*"),
    )


def _head_order(name: str) -> tuple[str | Repeat, ...]:
    modules = (
        "conv",
        "bn",
        "depthwise.conv",
        "depthwise.bn",
        "pointwise.conv",
        "pointwise.bn",
    )
    return (
        Repeat(f"{name}.embed.{{}}", ("",)),
        Repeat(f"{name}.aspp.{{}}", modules),
        f"{name}.bottleneck.conv",
        f"{name}.bottleneck.bn",
    )


_CLASSIFIER = rules(("conv_seg.*", "semantic.classifier.*"))

DAFORMER_HEAD = Table(
    name="daformer",
    backbone=False,
    classifier="semantic.classifier.weight",
    dialects=(
        Dialect(
            "DAFormer",
            prefixes=("decode_head.",),
            signature="embed_layers.0.proj.weight",
            rules=_head("semantic") + _CLASSIFIER,
        ),
        Dialect(
            "HRDA",
            prefixes=("decode_head.head.",),
            signature="embed_layers.0.proj.weight",
            rules=_head("semantic") + _CLASSIFIER,
        ),
        Dialect(
            "EDAPS, bottom-up",
            prefixes=("decode_head.",),
            signature="embed_layers_semantic.0.proj.weight",
            rules=_head("semantic", "_semantic") + _CLASSIFIER,
        ),
    ),
    order=(*_head_order("semantic"), "semantic.classifier"),
)

# Attention over the two resolutions: a SegFormer head of its own, which runs before the head.
HRDA_ATTENTION = Table(
    name="hrda_attention",
    backbone=False,
    dialects=(
        Dialect(
            "HRDA",
            prefixes=("decode_head.scale_attention.",),
            signature="embed_layers.0.proj.weight",
            rules=rules(
                ("embed_layers.{i}.proj.*", "attention.embed.{i}.*"),
                ("fuse_layer.conv.*", "attention.fuse.conv.*"),
                ("fuse_layer.bn.*", "attention.fuse.bn.*"),
                ("conv_seg.*", "attention.classifier.*"),
            ),
        ),
    ),
    order=(
        Repeat("attention.embed.{}", ("",)),
        "attention.fuse.conv",
        "attention.fuse.bn",
        "attention.classifier",
    ),
)

# Centres and offsets of instances, the second branch of EDAPS's bottom-up head.
EDAPS_INSTANCES = Table(
    name="edaps_instances",
    backbone=False,
    dialects=(
        Dialect(
            "EDAPS, bottom-up",
            prefixes=("decode_head.",),
            signature="embed_layers_instance.0.proj.weight",
            rules=_head("instance", "_instance")
            + rules(("reg_cnt.*", "instance.centre.*"), ("reg_ofs.*", "instance.offset.*")),
        ),
    ),
    order=(*_head_order("instance"), "instance.centre", "instance.offset"),
)

_PIPA = "used only while PiPa trains (its contrastive loss), not by the trained network"

PIPA_TRAINING = Table(
    name="pipa_training",
    backbone=False,
    dialects=(
        Dialect(
            "PiPa",
            prefixes=("",),
            signature="proj_head.proj.0.weight",
            rules=rules(("proj_head.proj.{i}.*", "pipa.projection.{i}.*")),
            dead={
                "cls_head.{i}.*": _PIPA,
                "cls_head.{i}.{b}.*": _PIPA,
                "proj_head.proj.{i}.*": _PIPA,
                "proj_head.proj.{i}.{b}.*": _PIPA,
            },
        ),
    ),
    order=(Repeat("pipa.projection.{}", ("",)),),
)
