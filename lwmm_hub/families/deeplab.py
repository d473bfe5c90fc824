"""DeepLab heads: version 2 of AdvEnt and its kin; version 3 of torchvision; 3 and 3+ of mmseg.

DeepLabV2 sums dilated convolutions of one feature map. `layer6` is the head; `layer5`, the
auxiliary head, reads the third stage and is trained with it in the multi-level systems. mmseg
registers `conv_seg`, which runs last, first.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table, rules, under

# AdaptSegNet's forward pass returns after two of the four branches, and saves all four.
_UNUSED_BY_ADAPTSEGNET = (2, 3)
_INITIAL = 0.01

DEEPLABV2_AUXILIARY = Table(
    name="deeplabv2_auxiliary",
    backbone=False,
    dialects=(
        Dialect(
            "AdvEnt, AdaptSegNet or MaxSquare",
            prefixes=("",),
            signature="layer5.conv2d_list.0.weight",
            rules=rules(("layer5.conv2d_list.{i}.*", "auxiliary.branches.{i}.*")),
        ),
    ),
    order=(Repeat("auxiliary.branches.{}", ("",)),),
    untrained={f"auxiliary.branches.{i}": _INITIAL for i in _UNUSED_BY_ADAPTSEGNET},
)

DEEPLABV2_HEAD = Table(
    name="deeplabv2",
    backbone=False,
    classifier="head.branches.0.weight",
    dialects=(
        Dialect(
            "AdvEnt, AdaptSegNet or MaxSquare",
            prefixes=("",),
            signature="layer6.conv2d_list.0.weight",
            rules=rules(("layer6.conv2d_list.{i}.*", "head.branches.{i}.*")),
        ),
        Dialect(
            "FADA",
            prefixes=("",),
            signature="classifier/conv2d_list.0.weight",
            rules=rules(("classifier/conv2d_list.{i}.*", "head.branches.{i}.*")),
        ),
    ),
    order=(Repeat("head.branches.{}", ("",)),),
    untrained={f"head.branches.{i}": _INITIAL for i in _UNUSED_BY_ADAPTSEGNET},
)

DEEPLABV3_HEAD = Table(
    name="deeplabv3",
    backbone=False,
    classifier="classifier.4.weight",
    dialects=(
        Dialect(
            "torchvision",
            prefixes=("",),
            signature="classifier.0.convs.0.0.weight",
        ),
    ),
    order=(
        Repeat("classifier.0.convs.{}", (Repeat("{}", ("",)),)),
        "classifier.0.project.0",
        "classifier.0.project.1",
        "classifier.1",
        "classifier.2",
        "classifier.4",
        "aux_classifier.0",
        "aux_classifier.1",
        "aux_classifier.4",
    ),
)

_CONV = (("conv.*", "conv.*"), ("bn.*", "norm.*"))
_SEPARABLE = (
    *under("depthwise_conv.", "depthwise.", *_CONV),
    *under("pointwise_conv.", "pointwise.", *_CONV),
)
_PAIR = ("conv", "norm")
_SEPARABLE_ORDER = tuple(
    f"{which}.{what}" for which in ("depthwise", "pointwise") for what in _PAIR
)

ASPP_HEAD = Table(
    name="deeplab of mmseg",
    backbone=False,
    classifier="aspp.classifier.weight",
    dialects=(
        Dialect(
            "mmseg",
            prefixes=("decode_head.",),
            signature="image_pool.1.conv.weight",
            rules=rules(
                *under("image_pool.1.", "aspp.pool.", *_CONV),
                *under("aspp_modules.{i}.", "aspp.branches.{i}.", *_CONV, *_SEPARABLE),
                *under("bottleneck.", "aspp.bottleneck.", *_CONV),
                *under("c1_bottleneck.", "aspp.skip.", *_CONV),
                *under("sep_bottleneck.{i}.", "aspp.decoder.{i}.", *_SEPARABLE),
                ("conv_seg.*", "aspp.classifier.*"),
            ),
            beside=("aspp_modules.0.conv.weight", "conv_seg.weight"),
        ),
    ),
    order=(
        "aspp.pool.conv",
        "aspp.pool.norm",
        Repeat("aspp.branches.{}", (*_PAIR, *_SEPARABLE_ORDER)),
        "aspp.bottleneck.conv",
        "aspp.bottleneck.norm",
        "aspp.skip.conv",
        "aspp.skip.norm",
        Repeat("aspp.decoder.{}", _SEPARABLE_ORDER),
        "aspp.classifier",
    ),
)
