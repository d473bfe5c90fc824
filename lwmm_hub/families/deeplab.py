"""DeepLab heads: version 2 of AdvEnt, AdaptSegNet, MaxSquare and FADA; version 3 of torchvision.

DeepLabV2 sums dilated convolutions of one feature map. `layer6` is the head; `layer5`, the
auxiliary head, reads the third stage and is trained with it in the multi-level systems.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table, rules

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
