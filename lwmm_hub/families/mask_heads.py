"""What Mask2Former, OneFormer, MaskFormer and EoMT put behind their backbones.

Mask2Former and OneFormer have the same pixel decoder, so that is a table of its own. Their class
predictors count one class more than the labels ("no object"), so no table names a classifier here:
the labels of the config count. OneFormer's text mapper runs in training only. transformers spells
all but MaskFormer's decoder in one way, on disk and in memory: keys are our names.

Mask2Former's authors, on detectron2, register the three layers of a decoder's block in three lists
and fuse queries, keys and values of its self-attention. Their older files lack `pixel_decoder.`
and call the query features `static_query`, as the network's own loading code has it.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table, rules, under

_PIXELS = "model.pixel_level_module.decoder."
_TRANSFORMER = "model.transformer_module."
_DECODER = f"{_TRANSFORMER}decoder."

_CROSS_ATTENTION = "predictor.transformer_cross_attention_layers.0.multihead_attn.in_proj_weight"
_OF_ONEFORMER = "predictor.class_transformer.decoder.norm.weight"


def _authors_pixels(name: str, before: str) -> Dialect:
    """The pixel decoder of Mask2Former's authors, `before` what stands before its own layers."""
    return Dialect(
        name,
        prefixes=("sem_seg_head.",),
        signature=f"{before}transformer.encoder.layers.0.self_attn.sampling_offsets.weight",
        rules=rules(
            *under(
                before,
                _PIXELS,
                ("input_proj.{s}.0.*", "input_projections.{s}.0.*"),
                ("input_proj.{s}.1.*", "input_projections.{s}.1.*"),
                ("transformer.level_embed", "level_embed"),
                ("adapter_{i}.norm.*", "adapter_{i}.1.*"),
                ("adapter_{i}.*", "adapter_{i}.0.*"),
                ("layer_{i}.norm.*", "layer_{i}.1.*"),
                ("layer_{i}.*", "layer_{i}.0.*"),
                ("mask_features.*", "mask_projection.*"),
            ),
            *under(
                f"{before}transformer.encoder.layers.{{b}}.",
                f"{_PIXELS}encoder.layers.{{b}}.",
                ("self_attn.value_proj.*", "self_attn.value_proj.*"),
                ("self_attn.sampling_offsets.*", "self_attn.sampling_offsets.*"),
                ("self_attn.attention_weights.*", "self_attn.attention_weights.*"),
                ("self_attn.output_proj.*", "self_attn.output_proj.*"),
                ("norm1.*", "self_attn_layer_norm.*"),
                ("linear1.*", "fc1.*"),
                ("linear2.*", "fc2.*"),
                ("norm2.*", "final_layer_norm.*"),
            ),
            *under(
                "predictor.",
                _TRANSFORMER,
                ("input_proj.{s}.*", "input_projections.{s}.*"),
                ("level_embed.*", "level_embed.*"),
                ("query_embed.*", "queries_embedder.*"),
            ),
        ),
        beside=(_CROSS_ATTENTION,),
        without=(_OF_ONEFORMER,),
    )


def _authors_decoder(name: str, queries: str) -> Dialect:
    """The transformer decoder of Mask2Former's authors, `queries` its query features."""
    return Dialect(
        name,
        prefixes=("sem_seg_head.",),
        signature=f"predictor.{queries}.weight",
        rules=rules(
            (f"predictor.{queries}.*", f"{_TRANSFORMER}queries_features.*"),
            *under(
                "predictor.transformer_cross_attention_layers.{b}.",
                f"{_DECODER}layers.{{b}}.",
                ("multihead_attn.*", "cross_attn.*"),  # fused by both
                ("multihead_attn.out_proj.*", "cross_attn.out_proj.*"),
                ("norm.*", "cross_attn_layer_norm.*"),
            ),
            *under(
                "predictor.transformer_self_attention_layers.{b}.",
                f"{_DECODER}layers.{{b}}.",
                *(
                    (f"self_attn.in_proj_{leaf}", *(f"self_attn.{m}_proj.{leaf}" for m in "qkv"))
                    for leaf in ("weight", "bias")
                ),
                ("self_attn.out_proj.*", "self_attn.out_proj.*"),
                ("norm.*", "self_attn_layer_norm.*"),
            ),
            *under(
                "predictor.transformer_ffn_layers.{b}.",
                f"{_DECODER}layers.{{b}}.",
                ("linear1.*", "fc1.*"),
                ("linear2.*", "fc2.*"),
                ("norm.*", "final_layer_norm.*"),
            ),
            ("predictor.decoder_norm.*", f"{_DECODER}layernorm.*"),
            (
                "predictor.mask_embed.layers.{i}.*",
                f"{_DECODER}mask_predictor.mask_embedder.{{i}}.0.*",
            ),
            ("predictor.class_embed.*", "class_predictor.*"),
        ),
        beside=(_CROSS_ATTENTION,),
        without=(_OF_ONEFORMER,),
    )


PIXEL_DECODER = Table(
    name="mask2former pixel decoder",
    backbone=False,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("",),
            signature=f"{_PIXELS}encoder.layers.0.self_attn.sampling_offsets.weight",
        ),
        _authors_pixels("Mask2Former's authors", "pixel_decoder."),
        _authors_pixels("Mask2Former's authors, older", ""),
    ),
    order=(
        Repeat(f"{_PIXELS}input_projections.{{}}", ("0", "1")),
        _PIXELS.rstrip("."),
        Repeat(
            f"{_PIXELS}encoder.layers.{{}}",
            (
                "self_attn.value_proj",
                "self_attn.sampling_offsets",
                "self_attn.attention_weights",
                "self_attn.output_proj",
                "self_attn_layer_norm",
                "fc1",
                "fc2",
                "final_layer_norm",
            ),
        ),
        Repeat(f"{_PIXELS}adapter_{{}}", ("0", "1")),
        Repeat(f"{_PIXELS}layer_{{}}", ("0", "1")),
        f"{_PIXELS}mask_projection",
        Repeat("model.transformer_module.input_projections.{}", ("",)),
        "model.transformer_module.level_embed",
        "model.transformer_module.queries_embedder",
    ),
)

MASK2FORMER = Table(
    name="mask2former",
    backbone=False,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("",),
            signature=f"{_DECODER}mask_predictor.mask_embedder.0.0.weight",
        ),
        _authors_decoder("Mask2Former's authors", "query_feat"),
        _authors_decoder("Mask2Former's authors, older", "static_query"),
    ),
    order=(
        "model.transformer_module.queries_features",
        Repeat(
            f"{_DECODER}layers.{{}}",
            (
                "cross_attn",
                "cross_attn.out_proj",
                "cross_attn_layer_norm",
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.out_proj",
                "self_attn_layer_norm",
                "fc1",
                "fc2",
                "final_layer_norm",
            ),
        ),
        f"{_DECODER}layernorm",
        Repeat(f"{_DECODER}mask_predictor.mask_embedder.{{}}", ("0",)),
        "class_predictor",
    ),
)

_QUERY_TRANSFORMER = f"{_DECODER}query_transformer.decoder."

ONEFORMER = Table(
    name="oneformer",
    backbone=False,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("",),
            signature=f"{_DECODER}mask_embed.layers.0.0.weight",
        ),
    ),
    order=(
        "model.text_mapper.text_encoder.token_embedding",
        "model.text_mapper.text_encoder",
        Repeat(
            "model.text_mapper.text_encoder.transformer.layers.{}",
            (
                "layer_norm1",
                "self_attn",
                "self_attn.out_proj",
                "layer_norm2",
                "mlp.fc1",
                "mlp.fc2",
            ),
        ),
        "model.text_mapper.text_encoder.ln_final",
        Repeat("model.text_mapper.text_projector.layers.{}", ("0",)),
        "model.text_mapper.prompt_ctx",
        Repeat("model.task_encoder.task_mlp.layers.{}", ("0",)),
        "criterion",
        f"{_DECODER}query_input_projection",
        Repeat(
            f"{_QUERY_TRANSFORMER}layers.{{}}",
            (
                "self_attn",
                "self_attn.out_proj",
                "norm1",
                "multihead_attn",
                "multihead_attn.out_proj",
                "norm2",
                "linear1",
                "linear2",
                "norm3",
            ),
        ),
        f"{_QUERY_TRANSFORMER}norm",
        Repeat(
            f"{_DECODER}layers.{{}}",
            (
                "cross_attn.multihead_attn",
                "cross_attn.multihead_attn.out_proj",
                "cross_attn.norm",
                "self_attn.self_attn.q_proj",
                "self_attn.self_attn.k_proj",
                "self_attn.self_attn.v_proj",
                "self_attn.self_attn.out_proj",
                "self_attn.norm",
                "ffn.linear1",
                "ffn.linear2",
                "ffn.norm",
            ),
        ),
        f"{_DECODER}decoder_norm",
        f"{_DECODER}class_embed",
        Repeat(f"{_DECODER}mask_embed.layers.{{}}", ("0",)),
    ),
)


def _maskformer(out: str, mlp: str) -> tuple[tuple[str, ...], ...]:
    """The rows of MaskFormer's heads, in the words of one spelling of its DETR decoder."""
    return (
        ("model.pixel_level_module.decoder.fpn.stem.{i}.*", "neck.stem.{i}.*"),
        ("model.pixel_level_module.decoder.fpn.layers.{s}.proj.{i}.*", "neck.{s}.projection.{i}.*"),
        ("model.pixel_level_module.decoder.fpn.layers.{s}.block.{i}.*", "neck.{s}.block.{i}.*"),
        ("model.pixel_level_module.decoder.mask_projection.*", "neck.mask_projection.*"),
        ("model.transformer_module.input_projection.*", "head.input_projection.*"),
        ("model.transformer_module.queries_embedder.*", "head.queries.*"),
        *under(
            f"{_DECODER}layers.{{b}}.",
            "head.blocks.{b}.",
            *(
                (f"{attention}.{theirs}.*", f"{attention}.{ours}.*")
                for attention in ("self_attn", "encoder_attn")
                for theirs, ours in (
                    ("q_proj", "q"),
                    ("k_proj", "k"),
                    ("v_proj", "v"),
                    (out, "proj"),
                )
            ),
            ("self_attn_layer_norm.*", "self_attn_norm.*"),
            ("encoder_attn_layer_norm.*", "encoder_attn_norm.*"),
            (f"{mlp}fc1.*", "mlp.fc1.*"),
            (f"{mlp}fc2.*", "mlp.fc2.*"),
            ("final_layer_norm.*", "final_norm.*"),
        ),
        (f"{_DECODER}layernorm.*", "head.norm.*"),
        ("class_predictor.*", "head.class_predictor.*"),
        ("mask_embedder.{i}.0.*", "head.mask_embedder.{i}.*"),
    )


MASKFORMER = Table(
    name="maskformer",
    backbone=False,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("",),
            signature="mask_embedder.0.0.weight",
            rules=rules(*_maskformer("out_proj", "")),
            beside=(f"{_DECODER}layers.0.fc1.weight",),
        ),
        Dialect(
            "transformers, new names",
            prefixes=("",),
            signature="mask_embedder.0.0.weight",
            rules=rules(*_maskformer("o_proj", "mlp.")),
            beside=(f"{_DECODER}layers.0.mlp.fc1.weight",),
        ),
    ),
    order=(
        Repeat("neck.stem.{}", ("",)),
        Repeat(
            "neck.{}",
            (Repeat("projection.{}", ("",)), Repeat("block.{}", ("",))),
        ),
        "neck.mask_projection",
        "head.input_projection",
        "head.queries",
        Repeat(
            "head.blocks.{}",
            (
                *(f"self_attn.{name}" for name in ("q", "k", "v", "proj")),
                "self_attn_norm",
                *(f"encoder_attn.{name}" for name in ("q", "k", "v", "proj")),
                "encoder_attn_norm",
                "mlp.fc1",
                "mlp.fc2",
                "final_norm",
            ),
        ),
        "head.norm",
        "head.class_predictor",
        Repeat("head.mask_embedder.{}", ("",)),
    ),
)

EOMT_HEAD = Table(
    name="eomt",
    backbone=False,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("",),
            signature="upscale_block.block.0.conv1.weight",
        ),
    ),
    order=(
        "query",
        "class_predictor",
        "mask_head.fc1",
        "mask_head.fc2",
        "mask_head.fc3",
        Repeat("upscale_block.block.{}", ("conv1", "conv2", "layernorm2d")),
    ),
)
