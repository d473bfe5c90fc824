"""DETR and Conditional DETR: encoder, decoder and predictors, and the mask head of both.

Spellings: transformers on disk and, since version 5, in memory. Their ResNet is another table. The
class predictors count "no object" too, so the labels of the config count, not a tensor here.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table, rules, under

_QKV = (("q_proj.*", "q.*"), ("k_proj.*", "k.*"), ("v_proj.*", "v.*"))
_NORMS = (
    ("self_attn_layer_norm.*", "self_attn_norm.*"),
    ("final_layer_norm.*", "final_norm.*"),
)
# Conditional DETR's projections of content and position: on disk, in memory, ours
_CONDITIONAL = (
    ("sa_qcontent_proj", "self_attn.q_content_proj", "self_attn.q_content"),
    ("sa_qpos_proj", "self_attn.q_pos_proj", "self_attn.q_position"),
    ("sa_kcontent_proj", "self_attn.k_content_proj", "self_attn.k_content"),
    ("sa_kpos_proj", "self_attn.k_pos_proj", "self_attn.k_position"),
    ("sa_v_proj", "self_attn.v_proj", "self_attn.v"),
    ("ca_qcontent_proj", "encoder_attn.q_content_proj", "encoder_attn.q_content"),
    ("ca_kcontent_proj", "encoder_attn.k_content_proj", "encoder_attn.k_content"),
    ("ca_v_proj", "encoder_attn.v_proj", "encoder_attn.v"),
    ("ca_kpos_proj", "encoder_attn.k_pos_proj", "encoder_attn.k_position"),
    ("ca_qpos_proj", "encoder_attn.q_pos_proj", "encoder_attn.q_position"),
    ("ca_qpos_sine_proj", "encoder_attn.q_pos_sine_proj", "encoder_attn.q_sine"),
)


def _detr(out: str, mlp: str, *decoder: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The rows of one spelling: its output projection, what is before fc1, its decoder's own."""
    layers = (
        *under("self_attn.", "self_attn.", (f"{out}.*", "proj.*")),
        *_NORMS,
        (f"{mlp}fc1.*", "mlp.fc1.*"),
        (f"{mlp}fc2.*", "mlp.fc2.*"),
    )
    return (
        ("model.input_projection.*", "neck.input_projection.*"),
        *under(
            "model.encoder.layers.{b}.",
            "neck.blocks.{b}.",
            *under("self_attn.", "self_attn.", *_QKV),
            *layers,
        ),
        ("model.query_position_embeddings.*", "head.queries.*"),
        ("model.decoder.ref_point_head.layers.{i}.*", "head.reference_points.{i}.*"),
        ("model.decoder.query_scale.layers.{i}.*", "head.query_scale.{i}.*"),
        *under(
            "model.decoder.layers.{b}.",
            "head.blocks.{b}.",
            *decoder,
            *layers,
            (f"encoder_attn.{out}.*", "encoder_attn.proj.*"),
            ("encoder_attn_layer_norm.*", "encoder_attn_norm.*"),
        ),
        ("model.decoder.layernorm.*", "head.norm.*"),
        ("class_labels_classifier.*", "head.class_predictor.*"),
        ("bbox_predictor.layers.{i}.*", "head.box_predictor.{i}.*"),
    )


_DECODER = (
    *under("self_attn.", "self_attn.", *_QKV),
    *under("encoder_attn.", "encoder_attn.", *_QKV),
)

_BESIDE = ("model.decoder.layers.0.self_attn.q_proj.weight", "bbox_predictor.layers.0.weight")

DETR = Table(
    name="detr",
    backbone=False,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("detr.", ""),
            signature="model.decoder.layers.0.encoder_attn.out_proj.weight",
            rules=rules(*_detr("out_proj", "", *_DECODER)),
            beside=_BESIDE,
        ),
        Dialect(
            "transformers, new names",
            prefixes=("detr.", ""),
            signature="model.decoder.layers.0.encoder_attn.o_proj.weight",
            rules=rules(*_detr("o_proj", "mlp.", *_DECODER)),
            beside=_BESIDE,
        ),
        Dialect(
            "transformers, Conditional DETR",
            prefixes=("conditional_detr.", ""),
            signature="model.decoder.layers.0.ca_qcontent_proj.weight",
            rules=rules(
                *_detr(
                    "out_proj", "", *((f"{disk}.*", f"{ours}.*") for disk, _, ours in _CONDITIONAL)
                )
            ),
        ),
        Dialect(
            "transformers, Conditional DETR, new names",
            prefixes=("conditional_detr.", ""),
            signature="model.decoder.layers.0.encoder_attn.q_content_proj.weight",
            rules=rules(
                *_detr(
                    "o_proj", "mlp.", *((f"{new}.*", f"{ours}.*") for _, new, ours in _CONDITIONAL)
                )
            ),
        ),
    ),
    order=(
        "neck.input_projection",
        Repeat(
            "neck.blocks.{}",
            (
                *(f"self_attn.{name}" for name in ("q", "k", "v", "proj")),
                "self_attn_norm",
                "mlp.fc1",
                "mlp.fc2",
                "final_norm",
            ),
        ),
        "head.queries",
        Repeat("head.reference_points.{}", ("",)),
        Repeat(
            "head.blocks.{}",
            (
                *(
                    f"self_attn.{name}"
                    for name in (
                        "q", "k", "q_content", "q_position", "k_content", "k_position", "v", "proj"
                    )
                ),
                "self_attn_norm",
                *(
                    f"encoder_attn.{name}"
                    for name in (
                        "q", "k", "q_content", "k_content", "v",
                        "k_position", "q_position", "q_sine", "proj",
                    )
                ),
                "encoder_attn_norm",
                "mlp.fc1",
                "mlp.fc2",
                "final_norm",
            ),
            throughout=(Repeat("head.query_scale.{}", ("",)),),
        ),
        "head.norm",
        "head.class_predictor",
        Repeat("head.box_predictor.{}", ("",)),
    ),
)  # fmt: skip

_MASK_HEAD = (  # on disk, in memory, ours; in the order of the forward pass
    ("bbox_attention.q_linear", "bbox_attention.q_proj", "attention.q"),
    ("bbox_attention.k_linear", "bbox_attention.k_proj", "attention.k"),
    ("mask_head.lay1", "mask_head.conv1.conv", "conv1"),
    ("mask_head.gn1", "mask_head.conv1.norm", "norm1"),
    ("mask_head.lay2", "mask_head.conv2.conv", "conv2"),
    ("mask_head.gn2", "mask_head.conv2.norm", "norm2"),
    ("mask_head.adapter1", "mask_head.fpn_stages.0.fpn_adapter", "adapter1"),
    ("mask_head.lay3", "mask_head.fpn_stages.0.refine.conv", "conv3"),
    ("mask_head.gn3", "mask_head.fpn_stages.0.refine.norm", "norm3"),
    ("mask_head.adapter2", "mask_head.fpn_stages.1.fpn_adapter", "adapter2"),
    ("mask_head.lay4", "mask_head.fpn_stages.1.refine.conv", "conv4"),
    ("mask_head.gn4", "mask_head.fpn_stages.1.refine.norm", "norm4"),
    ("mask_head.adapter3", "mask_head.fpn_stages.2.fpn_adapter", "adapter3"),
    ("mask_head.lay5", "mask_head.fpn_stages.2.refine.conv", "conv5"),
    ("mask_head.gn5", "mask_head.fpn_stages.2.refine.norm", "norm5"),
    ("mask_head.out_lay", "mask_head.output_conv", "output"),
)

DETR_MASK_HEAD = Table(
    name="detr masks",
    backbone=False,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("",),
            signature="mask_head.lay1.weight",
            rules=rules(*((f"{disk}.*", f"head.masks.{ours}.*") for disk, _, ours in _MASK_HEAD)),
        ),
        Dialect(
            "transformers, new names",
            prefixes=("",),
            signature="mask_head.conv1.conv.weight",
            rules=rules(*((f"{new}.*", f"head.masks.{ours}.*") for _, new, ours in _MASK_HEAD)),
        ),
    ),
    order=tuple(f"head.masks.{ours}" for _, _, ours in _MASK_HEAD),
)
