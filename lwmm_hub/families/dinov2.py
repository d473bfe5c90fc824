"""DINOv2, with and without registers, and EoMT, which is a DINOv2 with queries in its last blocks.

Spellings: transformers on disk, transformers 5 in memory (the giant's gated layers apart), the
authors', EoMT's. EoMT keeps its positions as an embedding of another shape, so they never match.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table, rules, under

_EMBEDDINGS = under(
    "embeddings.",
    "embeddings.",
    ("patch_embeddings.projection.*", "projection.*"),
    ("*", "*"),  # class, mask and register tokens, positions
)

_BLOCK = (
    ("norm1.*", "norm1.*"),
    ("layer_scale1.lambda1", "layer_scale1.lambda1"),
    ("norm2.*", "norm2.*"),
    ("mlp.fc1.*", "mlp.fc1.*"),
    ("mlp.fc2.*", "mlp.fc2.*"),
    ("layer_scale2.lambda1", "layer_scale2.lambda1"),
)

_GATED = (
    ("mlp.gate_proj.*", "mlp.gate.*"),
    ("mlp.up_proj.*", "mlp.up.*"),
    ("mlp.down_proj.*", "mlp.down.*"),
)

_FUSED_GATED = (
    ("mlp.weights_in.*", "mlp.gate.*", "mlp.up.*"),
    ("mlp.weights_out.*", "mlp.down.*"),
)

_PREFIXES = ("dinov2.", "dinov2_with_registers.", "backbone.", "")

DINOV2 = Table(
    name="dinov2",
    backbone=True,
    dialects=(
        Dialect(
            "transformers",
            prefixes=_PREFIXES,
            signature="encoder.layer.0.layer_scale1.lambda1",
            rules=rules(
                *_EMBEDDINGS,
                *under(
                    "encoder.layer.{b}.",
                    "blocks.{b}.",
                    *_BLOCK,
                    *_FUSED_GATED,
                    ("attention.attention.query.*", "attn.q.*"),
                    ("attention.attention.key.*", "attn.k.*"),
                    ("attention.attention.value.*", "attn.v.*"),
                    ("attention.output.dense.*", "attn.proj.*"),
                ),
                ("layernorm.*", "norm.*"),
            ),
            beside=("encoder.layer.0.attention.attention.query.weight",),
        ),
        Dialect(
            "transformers, new names",
            prefixes=_PREFIXES,
            signature="encoder.layer.0.layer_scale1.lambda1",
            rules=rules(
                *_EMBEDDINGS,
                *under(
                    "encoder.layer.{b}.",
                    "blocks.{b}.",
                    *_BLOCK,
                    *_GATED,
                    ("attention.q_proj.*", "attn.q.*"),
                    ("attention.k_proj.*", "attn.k.*"),
                    ("attention.v_proj.*", "attn.v.*"),
                    ("attention.o_proj.*", "attn.proj.*"),
                ),
                ("layernorm.*", "norm.*"),
            ),
            beside=("encoder.layer.0.attention.q_proj.weight",),
        ),
        Dialect(
            "EoMT",
            prefixes=("",),
            signature="layers.0.layer_scale1.lambda1",
            rules=rules(
                *_EMBEDDINGS,
                ("embeddings.position_embeddings.*", "embeddings.position_embeddings.*"),
                *under(
                    "layers.{b}.",
                    "blocks.{b}.",
                    *_BLOCK,
                    *_GATED,
                    ("attention.q_proj.*", "attn.q.*"),
                    ("attention.k_proj.*", "attn.k.*"),
                    ("attention.v_proj.*", "attn.v.*"),
                    ("attention.out_proj.*", "attn.proj.*"),
                ),
                ("layernorm.*", "norm.*"),
            ),
            beside=("layers.0.attention.out_proj.weight",),
        ),
        Dialect(
            "EoMT, giant on disk",
            prefixes=("",),
            signature="layers.0.mlp.weights_in.weight",
            rules=rules(
                *_EMBEDDINGS,
                ("embeddings.position_embeddings.*", "embeddings.position_embeddings.*"),
                *under(
                    "layers.{b}.",
                    "blocks.{b}.",
                    *_BLOCK,
                    *_FUSED_GATED,
                    ("attention.q_proj.*", "attn.q.*"),
                    ("attention.k_proj.*", "attn.k.*"),
                    ("attention.v_proj.*", "attn.v.*"),
                    ("attention.out_proj.*", "attn.proj.*"),
                ),
                ("layernorm.*", "norm.*"),
            ),
            beside=("layers.0.attention.out_proj.weight",),
        ),
        Dialect(
            "authors",
            prefixes=("", "backbone.", "module.", "encoder."),
            signature="blocks.0.ls1.gamma",
            rules=rules(
                ("cls_token", "embeddings.cls_token"),
                ("mask_token", "embeddings.mask_token"),
                ("register_tokens", "embeddings.register_tokens"),
                ("pos_embed", "embeddings.position_embeddings"),
                ("patch_embed.proj.*", "embeddings.projection.*"),
                *under(
                    "blocks.{b}.",
                    "blocks.{b}.",
                    ("norm1.*", "norm1.*"),
                    ("attn.qkv.*", "attn.q.*", "attn.k.*", "attn.v.*"),
                    ("attn.proj.*", "attn.proj.*"),
                    ("ls1.gamma", "layer_scale1.lambda1"),
                    ("norm2.*", "norm2.*"),
                    ("mlp.fc1.*", "mlp.fc1.*"),
                    ("mlp.fc2.*", "mlp.fc2.*"),
                    ("mlp.w12.*", "mlp.gate.*", "mlp.up.*"),
                    ("mlp.w3.*", "mlp.down.*"),
                    ("ls2.gamma", "layer_scale2.lambda1"),
                ),
                ("norm.*", "norm.*"),
            ),
            beside=("blocks.0.attn.qkv.weight",),
            without=("storage_tokens", "rope_embed.periods"),  # DINOv3
        ),
    ),
    order=(
        "embeddings.projection",
        "embeddings",
        "embeddings.position_embeddings",
        Repeat(
            "blocks.{}",
            (
                "norm1",
                "attn.q",
                "attn.k",
                "attn.v",
                "attn.proj",
                "layer_scale1",
                "norm2",
                "mlp.fc1",
                "mlp.gate",
                "mlp.up",
                "mlp.fc2",
                "mlp.down",
                "layer_scale2",
            ),
        ),
        "norm",
    ),
)
