"""The networks of the world, small enough for one core: SegFormers, a UperNet, a Mask2Former."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from world.canvas import Size
from world.data import SIZE
from world.labels import LabelSet

Weights = dict[str, torch.Tensor]


def _names(labels: LabelSet) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(labels.classes)),
        "label2id": {name: i for i, name in enumerate(labels.classes)},
    }


def segformer(labels: LabelSet, decoder: int = 64) -> SegformerForSemanticSegmentation:
    """A SegFormer of 0.3 million parameters; dropout would only slow so small a model down."""
    config = SegformerConfig(
        depths=[2, 2, 2, 2],
        hidden_sizes=[16, 32, 48, 64],
        num_attention_heads=[1, 2, 3, 4],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=decoder,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
        **_names(labels),
    )
    return SegformerForSemanticSegmentation(config)


def wide_segformer(labels: LabelSet) -> SegformerForSemanticSegmentation:
    """The same backbone under a head of another width: no tensor of the heads fits."""
    return segformer(labels, decoder=96)


def _swin() -> SwinConfig:
    return SwinConfig(
        image_size=list(SIZE),
        embed_dim=16,
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 4, 8],
        window_size=6,
        mlp_ratio=2.0,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def upernet(labels: LabelSet) -> UperNetForSemanticSegmentation:
    config = UperNetConfig(
        backbone_config=_swin(),
        hidden_size=32,
        pool_scales=[1, 2, 3],
        use_auxiliary_head=False,
        **_names(labels),
    )
    return UperNetForSemanticSegmentation(config)


def mask2former(labels: LabelSet) -> Mask2FormerForUniversalSegmentation:
    config = Mask2FormerConfig(
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=64,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        dim_feedforward=64,
        num_queries=32,
        train_num_points=768,
        **_names(labels),
    )
    return Mask2FormerForUniversalSegmentation(config)


NETWORKS = {
    "segformer": segformer,
    "wide segformer": wide_segformer,
    "upernet": upernet,
    "mask2former": mask2former,
}
# Where each keeps its backbone, and the classifier that is always new.
BACKBONES = {
    "segformer": "segformer.",
    "wide segformer": "segformer.",
    "upernet": "backbone.",
    "mask2former": "model.pixel_level_module.encoder.",
}
CLASSIFIERS = ("decode_head.classifier", "class_predictor")


def processor(network: str, size_of: Size = SIZE) -> Any:
    """The image processor that is saved beside the weights."""
    size = {"height": size_of[0], "width": size_of[1]}
    if network == "mask2former":
        return Mask2FormerImageProcessorPil(size=size, ignore_index=255)
    return SegformerImageProcessorPil(size=size)


def inherit(model: PreTrainedModel, network: str, ancestor: Weights, of: str) -> int:
    """Give `model` what fits of an ancestor: all but the classifier, or the backbone alone.

    Returns:
        How many tensors were inherited.
    """
    own = model.state_dict()
    mine, theirs = BACKBONES[network], BACKBONES[of]
    same = network == of
    given = {}
    for key, value in ancestor.items():
        name = key if same or not key.startswith(theirs) else mine + key.removeprefix(theirs)
        if key.startswith(CLASSIFIERS) or not (same or key.startswith(theirs)):
            continue
        if name not in own or own[name].shape != value.shape:
            raise RuntimeError(f"the ancestor does not fit {network}: {name}")
        given[name] = value
    model.load_state_dict(given, strict=False)
    return len(given)


def pixels_of(images: torch.Tensor) -> torch.Tensor:
    """What the image processors give for uint8 (n, h, w, 3) that have their size: (n, 3, h, w)."""
    prepared = processor("segformer")
    scaled = images.permute(0, 3, 1, 2).float() * prepared.rescale_factor
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (prepared.image_mean, prepared.image_std))
    return (scaled - mean) / std
