"""The heads of DPT (semantic and depth) and of GLPN, as transformers spells them."""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table, rules, under

_DPT_NECK = under(
    "neck.",
    "neck.",
    ("reassemble_stage.readout_projects.{i}.0.*", "reassemble.{i}.readout.*"),
    ("reassemble_stage.layers.{i}.projection.*", "reassemble.{i}.projection.*"),
    ("reassemble_stage.layers.{i}.resize.*", "reassemble.{i}.resize.*"),
    ("convs.{i}.*", "convs.{i}.*"),
    *under(
        "fusion_stage.layers.{i}.",
        "fusion.{i}.",
        *(
            (f"residual_layer{n}.{module}.*", f"residual{n}.{module}.*")
            for n in (1, 2)
            for module in ("convolution1", "batch_norm1", "convolution2", "batch_norm2")
        ),
        ("projection.*", "projection.*"),
    ),
)

DPT_HEAD = Table(
    name="dpt",
    backbone=False,
    classifier="head.classifier.weight",
    dialects=(
        Dialect(
            "transformers",
            prefixes=("",),
            signature="neck.fusion_stage.layers.0.projection.weight",
            rules=rules(
                *_DPT_NECK,
                *under(
                    "head.head.",
                    "head.",
                    ("0.*", "conv.*"),
                    ("1.*", "norm.*"),
                    ("4.*", "classifier.*"),
                ),
                *under(
                    "auxiliary_head.head.",
                    "head.auxiliary.",
                    ("0.*", "conv.*"),
                    ("1.*", "norm.*"),
                    ("4.*", "classifier.*"),
                ),
            ),
            beside=("head.head.1.running_mean",),
        ),
        Dialect(
            "transformers, depth",
            prefixes=("",),
            signature="neck.fusion_stage.layers.0.projection.weight",
            rules=rules(
                *_DPT_NECK,
                ("head.projection.*", "head.depth.projection.*"),
                *under(
                    "head.head.",
                    "head.depth.",
                    ("0.*", "conv1.*"),
                    ("2.*", "conv2.*"),
                    ("4.*", "conv3.*"),
                ),
            ),
            beside=("head.head.2.weight",),
        ),
    ),
    order=(
        Repeat("neck.reassemble.{}", ("readout", "projection", "resize")),
        Repeat("neck.convs.{}", ("",)),
        Repeat(
            "neck.fusion.{}",
            (
                *(
                    f"residual{n}.{module}"
                    for n in (1, 2)
                    for module in ("convolution1", "batch_norm1", "convolution2", "batch_norm2")
                ),
                "projection",
            ),
        ),
        "head.conv",
        "head.norm",
        "head.classifier",
        "head.depth.projection",
        "head.depth.conv1",
        "head.depth.conv2",
        "head.depth.conv3",
        "head.auxiliary.conv",
        "head.auxiliary.norm",
        "head.auxiliary.classifier",
    ),
)

GLPN_HEAD = Table(
    name="glpn",
    backbone=False,
    dialects=(
        Dialect("transformers", prefixes=("",), signature="decoder.stages.0.convolution.weight"),
    ),
    order=(
        Repeat(
            "decoder.stages.{}",
            (
                "convolution",
                "fusion.convolutional_layer1.0",
                "fusion.convolutional_layer1.1",
                "fusion.convolutional_layer2.0",
                "fusion.convolutional_layer2.1",
                "fusion.convolutional_layer3",
            ),
        ),
        "head.head.0",
        "head.head.2",
    ),
)
