"""The UPerNet head with its auxiliary head, on any backbone, and the pyramid of BEiT before it.

Spellings: transformers' UperNet, BEiT (old names; new ones in memory), Data2Vec as transformers 5
writes it, mmseg (whose `conv_seg` is the classifier).
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table, rules, under


def _head(
    conv: str,
    norm: str,
    psp: str = "psp_modules.{i}.1.",
    bottleneck: str = "bottleneck.",
    classifier: str = "classifier",
) -> tuple[tuple[str, ...], ...]:
    """The rows of both heads, in the words of one spelling."""
    pair = ((f"{conv}.*", "conv.*"), (f"{norm}.*", "norm.*"))
    return (
        *under(
            "decode_head.",
            "head.",
            *under("lateral_convs.{i}.", "lateral.{i}.", *pair),
            *under(psp, "pooling.{i}.", *pair),
            *under(bottleneck, "bottleneck.", *pair),
            *under("fpn_convs.{i}.", "pyramid.{i}.", *pair),
            *under("fpn_bottleneck.", "fusion.", *pair),
            (f"{classifier}.*", "classifier.*"),
        ),
        *under(
            "auxiliary_head.",
            "head.auxiliary.",
            *under("convs.{i}.", "convs.{i}.", *pair),
            *under("conv_cat.", "fusion.", *pair),
            (f"{classifier}.*", "classifier.*"),
        ),
    )


_NEW_HEAD = _head("convolution", "normalization", "psp_modules.blocks.{i}.conv.", "psp_bottleneck.")

_PYRAMID = (
    ("fpn1.0.*", "neck.up4.conv1.*"),
    ("fpn1.1.*", "neck.up4.norm.*"),
    ("fpn1.3.*", "neck.up4.conv2.*"),
    ("fpn2.0.*", "neck.up2.conv.*"),
)

UPERNET_HEAD = Table(
    name="upernet",
    backbone=False,
    classifier="head.classifier.weight",
    dialects=(
        Dialect(
            "transformers",
            prefixes=("",),
            signature="decode_head.psp_modules.0.1.batch_norm.weight",
            rules=rules(*_head("conv", "batch_norm")),
        ),
        Dialect(
            "transformers, BEiT",
            prefixes=("",),
            signature="decode_head.psp_modules.0.1.bn.weight",
            rules=rules(*_PYRAMID, *_head("conv", "bn")),
            beside=("decode_head.classifier.weight",),
        ),
        Dialect(
            "transformers, BEiT, new names",
            prefixes=("",),
            signature="decode_head.psp_modules.blocks.0.conv.normalization.weight",
            rules=rules(
                ("fpn.fpn1.conv_transpose1.*", "neck.up4.conv1.*"),
                ("fpn.fpn1.normalization.*", "neck.up4.norm.*"),
                ("fpn.fpn1.conv_transpose2.*", "neck.up4.conv2.*"),
                ("fpn.fpn2.*", "neck.up2.conv.*"),
                *_NEW_HEAD,
            ),
            beside=("fpn.fpn2.weight",),
        ),
        Dialect(
            "transformers, Data2Vec, new names",
            prefixes=("",),
            signature="decode_head.psp_modules.blocks.0.conv.normalization.weight",
            rules=rules(*_PYRAMID, *_NEW_HEAD),
            beside=("fpn2.0.weight",),
        ),
        Dialect(
            "mmseg",
            prefixes=("",),
            signature="decode_head.psp_modules.0.1.bn.weight",
            rules=rules(*_head("conv", "bn", classifier="conv_seg")),
            beside=("decode_head.conv_seg.weight",),
        ),
    ),
    order=(
        "neck.up4.conv1",
        "neck.up4.norm",
        "neck.up4.conv2",
        "neck.up2.conv",
        Repeat("head.lateral.{}", ("conv", "norm")),
        Repeat("head.pooling.{}", ("conv", "norm")),
        "head.bottleneck.conv",
        "head.bottleneck.norm",
        Repeat("head.pyramid.{}", ("conv", "norm")),
        "head.fusion.conv",
        "head.fusion.norm",
        "head.classifier",
        Repeat("head.auxiliary.convs.{}", ("conv", "norm")),
        "head.auxiliary.fusion.conv",
        "head.auxiliary.fusion.norm",
        "head.auxiliary.classifier",
    ),
)
