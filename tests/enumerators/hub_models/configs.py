"""The specimens: one tiny configuration per class and backbone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]

STAGES = ["stage1", "stage2", "stage3", "stage4"]

SWIN: Config = {
    "model_type": "swin",
    "image_size": 64,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.0,
}
CONVNEXT: Config = {
    "model_type": "convnext",
    "hidden_sizes": [8, 12, 16, 20],
    "depths": [1, 1, 2, 1],
}
RESNET: Config = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 2, 1, 1],
}
MIT: Config = {
    "hidden_sizes": [8, 12, 16, 20],
    "num_attention_heads": [1, 2, 2, 4],
    "depths": [1, 2, 1, 1],
    "mlp_ratios": [2, 2, 2, 2],
    "decoder_hidden_size": 12,
}
VIT: Config = {
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}
BEIT: Config = {
    **VIT,
    "auxiliary_channels": 8,
    "out_indices": [1, 2, 3, 4],
    "use_relative_position_bias": True,
    "layer_scale_init_value": 0.1,
}
DINOV2: Config = {**VIT, "model_type": "dinov2", "image_size": 56, "patch_size": 14, "mlp_ratio": 2}
EOMT: Config = {"num_queries": 5, "num_blocks": 2, "num_upscale_blocks": 1}
DINOV3: Config = {**VIT, "num_register_tokens": 4, "layer_norm_eps": 1e-6}
MOBILEVIT: Config = {
    "model_type": "mobilevit",
    "image_size": 64,
    "hidden_sizes": [16, 24, 32],
    "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32],
    "num_attention_heads": 2,
    "aspp_out_channels": 16,
}
MOBILENETV2: Config = {"model_type": "mobilenet_v2", "depth_multiplier": 0.1, "image_size": 64}
DETR: Config = {
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 5,
    "use_timm_backbone": False,
}
MASKED: Config = {
    "hidden_dim": 32,
    "encoder_feedforward_dim": 16,
    "dim_feedforward": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_attention_heads": 2,
    "num_queries": 5,
}
MASKFORMER: Config = {
    "model_type": "maskformer",
    "fpn_feature_size": 32,
    "mask_feature_size": 32,
}
MASK2FORMER: Config = {
    **MASKED,
    "model_type": "mask2former",
    "feature_size": 32,
    "mask_feature_size": 32,
}
ONEFORMER: Config = {
    **MASKED,
    "model_type": "oneformer",
    "mask_dim": 32,
    "conv_dim": 32,
    "text_encoder_width": 32,
    "text_encoder_context_length": 5,
    "text_encoder_num_layers": 1,
    "text_encoder_vocab_size": 29,
    "text_encoder_n_ctx": 2,
    "task_seq_len": 5,
    "query_dec_layers": 1,
}
DPT: Config = {
    **VIT,
    "model_type": "dpt",
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 8, 12, 12],
    "fusion_hidden_size": 12,
}


def _with(backbone: Config, **more: Any) -> Config:
    return {"backbone_config": {**backbone, "out_features": STAGES, **more}}


def _upernet(backbone: Config, auxiliary_in_channels: int, **more: Any) -> Config:
    return {
        "model_type": "upernet",
        "hidden_size": 8,
        "auxiliary_channels": 8,
        "auxiliary_in_channels": auxiliary_in_channels,
        **_with(backbone, **more),
    }


def _maskformer(backbone: Config) -> Config:
    decoder = {**DETR, "model_type": "detr", **_with(RESNET)}
    return {**MASKFORMER, "decoder_config": decoder, **_with(backbone)}


@dataclass(frozen=True)
class Specimen:
    """A class with a tiny configuration.

    Attributes:
        model_class: name of the transformers class.
        config: what its configuration is made of.
        family: models of one family descend from one backbone.
        walk: name of the walk through its backbone (`roles.WALKS`).
        backbone: where the walk starts in the built model.
        wrapper: module around what a related class has at the top level.
        inputs: shapes of further inputs of a forward pass.
    """

    model_class: str
    config: Config
    family: str
    walk: str
    backbone: str
    wrapper: str = ""
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)


_PIXELS = "model.pixel_level_module.encoder"
_V2 = {**SWIN, "model_type": "swinv2"}
_NEXT2 = {**CONVNEXT, "model_type": "convnextv2"}
_REGISTERS = {**DINOV2, "model_type": "dinov2_with_registers"}
_UPER, _M2F, _ONE, _MF = (
    "UperNetForSemanticSegmentation",
    "Mask2FormerForUniversalSegmentation",
    "OneFormerForUniversalSegmentation",
    "MaskFormerForInstanceSegmentation",
)

SPECIMENS: dict[str, Specimen] = {
    "swin": Specimen("SwinForImageClassification", SWIN, "swin", "swin", "swin"),
    "upernet-swin": Specimen(_UPER, _upernet(SWIN, 32), "swin", "swin backbone", "backbone"),
    "mask2former-swin": Specimen(
        _M2F, {**MASK2FORMER, **_with(SWIN)}, "swin", "swin backbone", _PIXELS
    ),
    "oneformer-swin": Specimen(
        _ONE,
        {**ONEFORMER, **_with(SWIN)},
        "swin",
        "swin backbone",
        _PIXELS,
        inputs={"task_inputs": (1, 5)},
    ),
    "maskformer-swin": Specimen(_MF, _maskformer(SWIN), "swin", "maskformer swin", _PIXELS),
    "swinv2": Specimen("Swinv2ForImageClassification", _V2, "swinv2", "as named", "swinv2"),
    "upernet-swinv2": Specimen(_UPER, _upernet(_V2, 32), "swinv2", "as named", "backbone"),
    "convnext": Specimen(
        "ConvNextForImageClassification", CONVNEXT, "convnext", "as named", "convnext"
    ),
    "upernet-convnext": Specimen(_UPER, _upernet(CONVNEXT, 16), "convnext", "as named", "backbone"),
    "convnextv2": Specimen(
        "ConvNextV2ForImageClassification", _NEXT2, "convnextv2", "as named", "convnextv2"
    ),
    "upernet-convnextv2": Specimen(
        _UPER, _upernet(_NEXT2, 16), "convnextv2", "as named", "backbone"
    ),
    "resnet": Specimen("ResNetForImageClassification", RESNET, "resnet", "as named", "resnet"),
    "upernet-resnet": Specimen(_UPER, _upernet(RESNET, 24), "resnet", "as named", "backbone"),
    "mask2former-resnet": Specimen(
        _M2F, {**MASK2FORMER, **_with(RESNET)}, "resnet", "as named", _PIXELS
    ),
    "maskformer-resnet": Specimen(_MF, _maskformer(RESNET), "resnet", "as named", _PIXELS),
    "detr-segmentation": Specimen(
        "DetrForSegmentation",
        {"model_type": "detr", **DETR, **_with(RESNET)},
        "resnet",
        "as named",
        "detr.model.backbone.model",
        wrapper="detr.",
    ),
    "detr-detection": Specimen(
        "DetrForObjectDetection",
        {"model_type": "detr", **DETR, **_with(RESNET)},
        "resnet",
        "as named",
        "model.backbone.model",
    ),
    "conditional-detr": Specimen(
        "ConditionalDetrForSegmentation",
        {"model_type": "conditional_detr", **DETR, **_with(RESNET)},
        "resnet",
        "as named",
        "conditional_detr.model.backbone.model",
        wrapper="conditional_detr.",
    ),
    "segformer": Specimen(
        "SegformerForSemanticSegmentation",
        {"model_type": "segformer", **MIT},
        "mit",
        "mit",
        "segformer",
    ),
    "segformer-classification": Specimen(
        "SegformerForImageClassification",
        {"model_type": "segformer", **MIT},
        "mit",
        "mit",
        "segformer",
    ),
    "glpn": Specimen(
        "GLPNForDepthEstimation", {"model_type": "glpn", **MIT}, "mit", "glpn", "glpn.encoder"
    ),
    "vit": Specimen("ViTForImageClassification", {"model_type": "vit", **VIT}, "vit", "vit", "vit"),
    "dpt-vit": Specimen("DPTForSemanticSegmentation", DPT, "vit", "dpt", "dpt"),
    "beit": Specimen(
        "BeitForSemanticSegmentation", {"model_type": "beit", **BEIT}, "beit", "beit", "beit"
    ),
    "beit-classification": Specimen(
        "BeitForImageClassification", {"model_type": "beit", **BEIT}, "beit", "beit", "beit"
    ),
    "data2vec": Specimen(
        "Data2VecVisionForSemanticSegmentation",
        {"model_type": "data2vec-vision", **BEIT},
        "beit",
        "data2vec",
        "data2vec_vision",
    ),
    "data2vec-classification": Specimen(
        "Data2VecVisionForImageClassification",
        {"model_type": "data2vec-vision", **BEIT},
        "beit",
        "data2vec",
        "data2vec_vision",
    ),
    "dinov2": Specimen("Dinov2ForImageClassification", DINOV2, "dinov2", "dinov2", "dinov2"),
    "dinov2-registers": Specimen(
        "Dinov2WithRegistersForImageClassification",
        _REGISTERS,
        "dinov2",
        "dinov2",
        "dinov2_with_registers",
    ),
    "dpt-dinov2": Specimen(
        "DPTForDepthEstimation",
        {**DPT, **_with(DINOV2, reshape_hidden_states=False)},
        "dinov2",
        "dinov2",
        "backbone",
    ),
    "upernet-dinov2": Specimen(_UPER, _upernet(DINOV2, 16), "dinov2", "dinov2", "backbone"),
    "eomt": Specimen(
        "EomtForUniversalSegmentation",
        {**DINOV2, "model_type": "eomt", **EOMT},
        "dinov2",
        "eomt",
        "",
    ),
    "dinov3": Specimen(
        "DINOv3ViTModel", {"model_type": "dinov3_vit", **DINOV3}, "dinov3", "dinov3", ""
    ),
    "eomt-dinov3": Specimen(
        "EomtDinov3ForUniversalSegmentation",
        {"model_type": "eomt_dinov3", **DINOV3, **EOMT},
        "dinov3",
        "eomt dinov3",
        "",
    ),
    "mobilevit": Specimen(
        "MobileViTForSemanticSegmentation", MOBILEVIT, "mobilevit", "as named", "mobilevit"
    ),
    "mobilevit-classification": Specimen(
        "MobileViTForImageClassification", MOBILEVIT, "mobilevit", "as named", "mobilevit"
    ),
    "mobilenetv2": Specimen(
        "MobileNetV2ForSemanticSegmentation", MOBILENETV2, "mobilenetv2", "as named", "mobilenet_v2"
    ),
    "mobilenetv2-classification": Specimen(
        "MobileNetV2ForImageClassification", MOBILENETV2, "mobilenetv2", "as named", "mobilenet_v2"
    ),
}

FAMILIES = tuple(dict.fromkeys(specimen.family for specimen in SPECIMENS.values()))
