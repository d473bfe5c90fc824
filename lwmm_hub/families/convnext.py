"""ConvNeXt and ConvNeXt V2, backbones of UperNet and OneFormer.

ConvNeXt comes in transformers' spelling (the same on disk and in memory), its authors' and timm's;
ConvNeXt V2 in transformers'. The two differ in every block (layer scale, or a response norm), so
they are two families.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, KeyRule, Repeat, Table, rules, under

_PREFIXES = ("backbone.", "model.pixel_level_module.encoder.", "")


def _timm(dot: str) -> tuple[KeyRule, ...]:
    """The names of timm, in which `dot` stands before the numbers of stages."""
    return rules(
        (f"stem{dot}0.*", "embeddings.projection.*"),
        (f"stem{dot}1.*", "embeddings.norm.*"),
        *under(
            f"stages{dot}{{s}}.",
            "stages.{s}.",
            ("downsample.0.*", "downsample.norm.*"),
            ("downsample.1.*", "downsample.conv.*"),
            ("blocks.{b}.conv_dw.*", "blocks.{b}.dwconv.*"),
            ("blocks.{b}.norm.*", "blocks.{b}.norm.*"),
            ("blocks.{b}.mlp.fc1.*", "blocks.{b}.pwconv1.*"),
            ("blocks.{b}.mlp.fc2.*", "blocks.{b}.pwconv2.*"),
            ("blocks.{b}.gamma", "blocks.{b}.layer_scale"),
        ),
        ("head.norm.*", "norm.*"),
    )


CONVNEXT = Table(
    name="convnext",
    backbone=True,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("convnext.", *_PREFIXES),
            signature="encoder.stages.0.layers.0.layer_scale_parameter",
            rules=rules(
                ("embeddings.patch_embeddings.*", "embeddings.projection.*"),
                ("embeddings.layernorm.*", "embeddings.norm.*"),
                *under(
                    "encoder.stages.{s}.",
                    "stages.{s}.",
                    ("downsampling_layer.0.*", "downsample.norm.*"),
                    ("downsampling_layer.1.*", "downsample.conv.*"),
                    ("layers.{b}.dwconv.*", "blocks.{b}.dwconv.*"),
                    ("layers.{b}.layernorm.*", "blocks.{b}.norm.*"),
                    ("layers.{b}.pwconv1.*", "blocks.{b}.pwconv1.*"),
                    ("layers.{b}.pwconv2.*", "blocks.{b}.pwconv2.*"),
                    ("layers.{b}.layer_scale_parameter", "blocks.{b}.layer_scale"),
                ),
                ("layernorm.*", "norm.*"),
                ("hidden_states_norms.stage{s+1}.*", "stage_norms.{s}.*"),
            ),
        ),
        Dialect(
            "original",
            prefixes=_PREFIXES,
            signature="stages.0.0.gamma",
            rules=rules(
                ("downsample_layers.0.0.*", "embeddings.projection.*"),
                ("downsample_layers.0.1.*", "embeddings.norm.*"),
                ("downsample_layers.{s+1}.0.*", "stages.{s+1}.downsample.norm.*"),
                ("downsample_layers.{s+1}.1.*", "stages.{s+1}.downsample.conv.*"),
                *under(
                    "stages.{s}.{b}.",
                    "stages.{s}.blocks.{b}.",
                    ("dwconv.*", "dwconv.*"),
                    ("norm.*", "norm.*"),
                    ("pwconv1.*", "pwconv1.*"),
                    ("pwconv2.*", "pwconv2.*"),
                    ("gamma", "layer_scale"),
                ),
                ("norm.*", "norm.*"),
                ("norm{s}.*", "stage_norms.{s}.*"),
            ),
        ),
        Dialect(
            "timm",
            prefixes=_PREFIXES,
            signature="stages.0.blocks.0.gamma",
            rules=_timm("."),
        ),
        Dialect(
            "timm, features alone",  # `tu-` encoders of segmentation-models-pytorch
            prefixes=("", "encoder.model.", "encoder.", "backbone."),
            signature="stages_0.blocks.0.gamma",
            rules=_timm("_"),
        ),
    ),
    order=(
        "embeddings.projection",
        "embeddings.norm",
        Repeat(
            "stages.{}",
            (
                "downsample.norm",
                "downsample.conv",
                Repeat("blocks.{}", ("dwconv", "norm", "pwconv1", "pwconv2", "")),
            ),
        ),
        "norm",
        Repeat("stage_norms.{}", ("",)),
    ),
)

CONVNEXTV2 = Table(
    name="convnextv2",
    backbone=True,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("convnextv2.", *_PREFIXES),
            signature="encoder.stages.0.layers.0.grn.weight",
        ),
    ),
    order=(
        "embeddings.patch_embeddings",
        "embeddings.layernorm",
        Repeat(
            "encoder.stages.{}",
            (
                "downsampling_layer.0",
                "downsampling_layer.1",
                Repeat("layers.{}", ("dwconv", "layernorm", "pwconv1", "grn", "pwconv2")),
            ),
        ),
        "layernorm",
        Repeat("hidden_states_norms.stage{}", ("",)),
    ),
)
