"""DINOv3's Vision Transformer, and EoMT built on it.

Spellings: transformers on disk, transformers 5 in memory, EoMT's.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table, rules, under

_EMBEDDINGS = under(
    "embeddings.",
    "embeddings.",
    ("patch_embeddings.*", "projection.*"),
    ("*", "*"),  # class, mask and register tokens
)

_BLOCK = (
    ("norm1.*", "norm1.*"),
    ("attention.q_proj.*", "attn.q.*"),
    ("attention.k_proj.*", "attn.k.*"),
    ("attention.v_proj.*", "attn.v.*"),
    ("attention.o_proj.*", "attn.proj.*"),
    ("layer_scale1.lambda1", "layer_scale1.lambda1"),
    ("norm2.*", "norm2.*"),
    ("mlp.gate_proj.*", "mlp.gate.*"),
    ("mlp.up_proj.*", "mlp.up.*"),
    ("mlp.down_proj.*", "mlp.down.*"),
    ("layer_scale2.lambda1", "layer_scale2.lambda1"),
)

_PREFIXES = ("dinov3_vit.", "backbone.", "")

DINOV3 = Table(
    name="dinov3",
    backbone=True,
    dialects=(
        Dialect(
            "transformers",
            prefixes=_PREFIXES,
            signature="layer.0.mlp.up_proj.weight",
            rules=rules(
                *_EMBEDDINGS, *under("layer.{b}.", "blocks.{b}.", *_BLOCK), ("norm.*", "norm.*")
            ),
            beside=("norm.weight", "layer.0.layer_scale1.lambda1"),
        ),
        Dialect(
            "transformers, new names",
            prefixes=_PREFIXES,
            signature="model.layer.0.mlp.up_proj.weight",
            rules=rules(
                *_EMBEDDINGS,
                *under("model.layer.{b}.", "blocks.{b}.", *_BLOCK),
                ("norm.*", "norm.*"),
            ),
            beside=("norm.weight", "model.layer.0.layer_scale1.lambda1"),
        ),
        Dialect(
            "EoMT",
            prefixes=("",),
            signature="layers.0.mlp.up_proj.weight",
            rules=rules(
                *_EMBEDDINGS,
                *under("layers.{b}.", "blocks.{b}.", *_BLOCK),
                ("layernorm.*", "norm.*"),
            ),
            beside=("layers.0.attention.o_proj.weight", "layers.0.layer_scale1.lambda1"),
        ),
    ),
    order=(
        "embeddings.projection",
        "embeddings",
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
                "mlp.gate",
                "mlp.up",
                "mlp.down",
                "layer_scale2",
            ),
        ),
        "norm",
    ),
)
