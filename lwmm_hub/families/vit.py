"""The Vision Transformer (ViT), and what shares its names: DeiT, DPT, BEiT and Data2Vec.

They are one table because their blocks have the same parameters; that a BEiT was not trained from
a ViT is what the values say. Spellings: transformers on disk (DPT and Data2Vec in memory, too),
transformers 5 in memory, timm and the authors' (fused q, k, v), BEiT's authors'.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table, rules, under

_EMBEDDINGS = under(
    "embeddings.",
    "embeddings.",
    ("patch_embeddings.projection.*", "projection.*"),
    ("*", "*"),  # class, mask and distillation tokens, positions
)

_ENDS = (
    ("layernorm.*", "norm.*"),
    ("pooler.layernorm.*", "pooler.layernorm.*"),
    ("pooler.dense.*", "pooler.dense.*"),
)

# DPT-hybrid's embeddings are a whole BiT, a ResNet with group norms
_BIT_BLOCK = (
    "downsample.conv",
    "downsample.norm",
    "conv1",
    "norm1",
    "conv2",
    "norm2",
    "conv3",
    "norm3",
)
_BIT = under(
    "embeddings.backbone.bit.",
    "bit.",
    ("embedder.convolution.*", "embedder.convolution.*"),
    ("embedder.norm.*", "embedder.norm.*"),
    *under(
        "encoder.stages.{s}.layers.{b}.",
        "stages.{s}.blocks.{b}.",
        *((f"{module}.*", f"{module}.*") for module in _BIT_BLOCK),
    ),
)

_TIMM_EMBEDDINGS = (
    ("cls_token", "embeddings.cls_token"),
    ("dist_token", "embeddings.distillation_token"),
    ("mask_token", "embeddings.mask_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.*", "embeddings.projection.*"),
)

_TIMM_BLOCK = (
    ("norm1.*", "norm1.*"),
    ("attn.proj.*", "attn.proj.*"),
    ("norm2.*", "norm2.*"),
    ("mlp.fc1.*", "mlp.fc1.*"),
    ("mlp.fc2.*", "mlp.fc2.*"),
)

VIT = Table(
    name="vit",
    backbone=True,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("vit.", "deit.", "dpt.", "beit.", "data2vec_vision.", "backbone.", ""),
            signature="encoder.layer.0.layernorm_before.weight",
            rules=rules(
                *_EMBEDDINGS,
                ("embeddings.projection.*", "embeddings.hybrid_projection.*"),
                *_BIT,
                ("encoder.relative_position_bias.*", "relative_position_bias.*"),
                *under(
                    "encoder.layer.{b}.",
                    "blocks.{b}.",
                    ("layernorm_before.*", "norm1.*"),
                    ("attention.attention.query.*", "attn.q.*"),
                    ("attention.attention.key.*", "attn.k.*"),
                    ("attention.attention.value.*", "attn.v.*"),
                    (
                        "attention.attention.relative_position_bias.*",
                        "attn.relative_position_bias.*",
                    ),
                    ("attention.output.dense.*", "attn.proj.*"),
                    ("layernorm_after.*", "norm2.*"),
                    ("intermediate.dense.*", "mlp.fc1.*"),
                    ("output.dense.*", "mlp.fc2.*"),
                    ("*", "*"),  # lambda_1, lambda_2
                ),
                *_ENDS,
            ),
            beside=("encoder.layer.0.attention.attention.query.weight",),
        ),
        Dialect(
            "transformers, new names",
            prefixes=("vit.", "deit.", "beit.", "backbone.", ""),
            signature="layers.0.layernorm_before.weight",
            rules=rules(
                *_EMBEDDINGS,
                ("shared_position_bias.*", "relative_position_bias.*"),
                *under(
                    "layers.{b}.",
                    "blocks.{b}.",
                    ("layernorm_before.*", "norm1.*"),
                    ("attention.q_proj.*", "attn.q.*"),
                    ("attention.k_proj.*", "attn.k.*"),
                    ("attention.v_proj.*", "attn.v.*"),
                    ("relative_position_bias.*", "attn.relative_position_bias.*"),
                    ("attention.o_proj.*", "attn.proj.*"),
                    ("layernorm_after.*", "norm2.*"),
                    ("mlp.fc1.*", "mlp.fc1.*"),
                    ("mlp.fc2.*", "mlp.fc2.*"),
                    ("*", "*"),
                ),
                *_ENDS,
            ),
            beside=("layers.0.attention.q_proj.weight", "layers.0.mlp.fc1.weight"),
        ),
        Dialect(
            "timm",
            prefixes=("", "F/", "module.", "backbone.", "encoder."),
            signature="blocks.0.attn.qkv.weight",
            rules=rules(
                *_TIMM_EMBEDDINGS,
                *under(
                    "blocks.{b}.",
                    "blocks.{b}.",
                    ("attn.qkv.*", "attn.q.*", "attn.k.*", "attn.v.*"),
                    *_TIMM_BLOCK,
                ),
                ("norm.*", "norm.*"),
            ),
            beside=("cls_token", "pos_embed"),
            without=("blocks.0.ls1.gamma", "blocks.0.gamma_1"),
        ),
        Dialect(
            "BEiT's authors",
            prefixes=("", "backbone.", "module.", "encoder."),
            signature="blocks.0.attn.qkv.weight",
            rules=rules(
                *_TIMM_EMBEDDINGS,
                ("rel_pos_bias.*", "relative_position_bias.*"),
                *under(
                    "blocks.{b}.",
                    "blocks.{b}.",
                    ("gamma_1", "lambda_1"),
                    ("gamma_2", "lambda_2"),
                    ("attn.q_bias", "attn.q.bias"),
                    ("attn.v_bias", "attn.v.bias"),
                    ("attn.qkv.weight", "attn.q.weight", "attn.k.weight", "attn.v.weight"),
                    (
                        "attn.relative_position_bias_table",
                        "attn.relative_position_bias.relative_position_bias_table",
                    ),
                    (
                        "attn.relative_position_index",
                        "attn.relative_position_bias.relative_position_index",
                    ),
                    *_TIMM_BLOCK,
                ),
                ("norm.*", "norm.*"),
                ("fc_norm.*", "pooler.layernorm.*"),
            ),
            beside=("blocks.0.gamma_1",),
            without=("reg_token", "blocks.0.attn.proj_l.weight"),  # timm's DINOv3, CaiT
        ),
    ),
    order=(
        "bit.embedder.convolution",
        "bit.embedder.norm",
        Repeat("bit.stages.{}", (Repeat("blocks.{}", _BIT_BLOCK),)),
        "embeddings.hybrid_projection",
        "embeddings.projection",
        "embeddings",
        Repeat(
            "blocks.{}",
            (
                "attn.relative_position_bias",
                "norm1",
                "attn.q",
                "attn.k",
                "attn.v",
                "attn.proj",
                "norm2",
                "mlp.fc1",
                "mlp.fc2",
                "",
            ),
            throughout=("relative_position_bias",),  # one table for the attentions of all blocks
        ),
        "norm",
        "pooler.layernorm",
        "pooler.dense",
    ),
)
