"""Swin and Swin V2, backbones of UperNet, MaskFormer, Mask2Former and OneFormer.

Spellings of Swin: transformers on disk, transformers 5 in memory (`save_original_format=False`),
each by itself and as a backbone, MaskFormer's own copy of the class, Microsoft's (also in mmseg's
first Swin models and in Mask2Former's on detectron2) and timm's. Swin V2 has one spelling.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table, rules, under

_EMBEDDINGS = under(
    "embeddings.",
    "embeddings.",
    ("patch_embeddings.projection.*", "projection.*"),
    ("norm.*", "norm.*"),
    ("*", "*"),  # mask token, absolute positions
)

_OLD = (
    *_EMBEDDINGS,
    *under(
        "encoder.layers.{s}.blocks.{b}.",
        "stages.{s}.blocks.{b}.",
        ("layernorm_before.*", "norm1.*"),
        ("attention.self.query.*", "attn.q.*"),
        ("attention.self.key.*", "attn.k.*"),
        ("attention.self.value.*", "attn.v.*"),
        ("attention.self.*", "attn.relative_position_bias.*"),
        ("attention.output.dense.*", "attn.proj.*"),
        ("layernorm_after.*", "norm2.*"),
        ("intermediate.dense.*", "mlp.fc1.*"),
        ("output.dense.*", "mlp.fc2.*"),
    ),
    ("encoder.layers.{s}.downsample.norm.*", "stages.{s}.downsample.norm.*"),
    ("encoder.layers.{s}.downsample.reduction.*", "stages.{s}.downsample.reduction.*"),
)

_NEW = (
    *_EMBEDDINGS,
    *under(
        "encoder.layers.{s}.blocks.{b}.",
        "stages.{s}.blocks.{b}.",
        ("layernorm_before.*", "norm1.*"),
        ("attention.q_proj.*", "attn.q.*"),
        ("attention.k_proj.*", "attn.k.*"),
        ("attention.v_proj.*", "attn.v.*"),
        ("attention.relative_position_bias.*", "attn.relative_position_bias.*"),
        ("attention.o_proj.*", "attn.proj.*"),
        ("layernorm_after.*", "norm2.*"),
        ("mlp.fc1.*", "mlp.fc1.*"),
        ("mlp.fc2.*", "mlp.fc2.*"),
    ),
    ("encoder.layers.{s}.downsample.norm.*", "stages.{s}.downsample.norm.*"),
    ("encoder.layers.{s}.downsample.reduction.*", "stages.{s}.downsample.reduction.*"),
)

_FINAL_NORM = ("layernorm.*", "norm.*")

# norms of the feature maps that a backbone hands to its head
_STAGE_NORMS = ("hidden_states_norms.stage{s+1}.*", "stage_norms.{s}.*")

_MICROSOFT = (
    ("absolute_pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.*", "embeddings.projection.*"),
    ("patch_embed.norm.*", "embeddings.norm.*"),
    *under(
        "layers.{s}.blocks.{b}.",
        "stages.{s}.blocks.{b}.",
        ("norm1.*", "norm1.*"),
        ("attn.qkv.*", "attn.q.*", "attn.k.*", "attn.v.*"),
        (
            "attn.relative_position_bias_table",
            "attn.relative_position_bias.relative_position_bias_table",
        ),
        (
            "attn.relative_position_index",
            "attn.relative_position_bias.relative_position_index",
        ),
        ("attn.proj.*", "attn.proj.*"),
        ("norm2.*", "norm2.*"),
        ("mlp.fc1.*", "mlp.fc1.*"),
        ("mlp.fc2.*", "mlp.fc2.*"),
    ),
    ("norm.*", "norm.*"),
    ("norm{s}.*", "stage_norms.{s}.*"),
)

_UNUSED_NORM = "the backbone runs this norm and drops what it gives: it was never trained"
_MASK = {"layers.{s}.blocks.{b}.attn_mask": "a constant of the window size"}

_OLD_SIGNATURE = "encoder.layers.0.blocks.0.attention.self.relative_position_bias_table"
_NEW_SIGNATURE = (
    "encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table"
)
_MICROSOFT_SIGNATURE = "layers.0.blocks.0.attn.relative_position_bias_table"

SWIN = Table(
    name="swin",
    backbone=True,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("swin.", "backbone.", "model.pixel_level_module.encoder.", ""),
            signature=_OLD_SIGNATURE,
            rules=rules(*_OLD, _FINAL_NORM, _STAGE_NORMS),
            dead={"swin.layernorm.*": _UNUSED_NORM},
        ),
        Dialect(
            "transformers, MaskFormer",
            prefixes=("model.pixel_level_module.encoder.",),
            signature=f"model.{_OLD_SIGNATURE}",
            rules=rules(
                *under("model.", "", *_OLD),
                ("hidden_states_norms.{s}.*", "stage_norms.{s}.*"),
            ),
            dead={"model.layernorm.*": _UNUSED_NORM},
            beside=("hidden_states_norms.0.weight",),
        ),
        Dialect(
            "transformers, new names, backbone",
            prefixes=("backbone.", "model.pixel_level_module.encoder.", ""),
            signature=f"swin.{_NEW_SIGNATURE}",
            rules=rules(*under("swin.", "", *_NEW), _STAGE_NORMS),
            dead={"swin.layernorm.*": _UNUSED_NORM},
        ),
        Dialect(
            "transformers, new names",
            prefixes=("swin.", ""),
            signature=_NEW_SIGNATURE,
            rules=rules(*_NEW, _FINAL_NORM),
        ),
        Dialect(
            "timm",
            prefixes=("", "model.", "encoder.", "backbone."),
            signature=_MICROSOFT_SIGNATURE,
            rules=rules(
                *_MICROSOFT,
                ("layers.{s+1}.downsample.norm.*", "stages.{s}.downsample.norm.*"),
                ("layers.{s+1}.downsample.reduction.*", "stages.{s}.downsample.reduction.*"),
            ),
            dead=_MASK,
            without=("layers.0.downsample.norm.weight",),
        ),
        Dialect(
            "timm, features alone",  # `tu-` encoders of segmentation-models-pytorch
            prefixes=("", "model.", "encoder.model.", "encoder.", "backbone."),
            signature=_MICROSOFT_SIGNATURE.replace("layers.", "layers_"),
            rules=rules(
                *((one.replace("layers.{", "layers_{"), *rest) for one, *rest in _MICROSOFT),
                ("layers_{s+1}.downsample.norm.*", "stages.{s}.downsample.norm.*"),
                ("layers_{s+1}.downsample.reduction.*", "stages.{s}.downsample.reduction.*"),
            ),
            dead={key.replace("layers.", "layers_"): why for key, why in _MASK.items()},
        ),
        Dialect(
            "Microsoft",
            prefixes=("", "backbone.", "model."),
            signature=_MICROSOFT_SIGNATURE,
            rules=rules(
                *_MICROSOFT,
                ("layers.{s}.downsample.norm.*", "stages.{s}.downsample.norm.*"),
                ("layers.{s}.downsample.reduction.*", "stages.{s}.downsample.reduction.*"),
            ),
            dead=_MASK,
            beside=("layers.0.downsample.norm.weight",),
        ),
    ),
    order=(
        "embeddings.projection",
        "embeddings.norm",
        "embeddings",
        Repeat(
            "stages.{}",
            (
                Repeat(
                    "blocks.{}",
                    (
                        "norm1",
                        "attn.q",
                        "attn.k",
                        "attn.v",
                        "attn.relative_position_bias",
                        "attn.proj",
                        "norm2",
                        "mlp.fc1",
                        "mlp.fc2",
                    ),
                ),
                "downsample.norm",
                "downsample.reduction",
            ),
        ),
        "norm",
        Repeat("stage_norms.{}", ("",)),
    ),
)

SWINV2 = Table(
    name="swinv2",
    backbone=True,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("swinv2.", "backbone.", "model.pixel_level_module.encoder.", ""),
            signature="encoder.layers.0.blocks.0.attention.self.logit_scale",
        ),
    ),
    order=(
        "embeddings.patch_embeddings.projection",
        "embeddings.norm",
        "embeddings",
        Repeat(
            "encoder.layers.{}",
            (
                Repeat(
                    "blocks.{}",
                    (
                        "attention.self.query",
                        "attention.self.key",
                        "attention.self.value",
                        "attention.self",
                        "attention.self.continuous_position_bias_mlp.0",
                        "attention.self.continuous_position_bias_mlp.2",
                        "attention.output.dense",
                        "layernorm_before",
                        "intermediate.dense",
                        "output.dense",
                        "layernorm_after",
                    ),
                ),
                "downsample.reduction",
                "downsample.norm",
            ),
        ),
        "layernorm",
        Repeat("hidden_states_norms.stage{}", ("",)),
    ),
)
