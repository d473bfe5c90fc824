"""Tiny models of transformers' segmentation classes with their image processors, by seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LABELS = ("road", "car", "sky")


def _labels(labels: Sequence[str] = LABELS) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {name: i for i, name in enumerate(labels)},
    }


def _swin() -> Any:
    from transformers import SwinConfig

    return SwinConfig(
        embed_dim=12,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 3, 4],
        window_size=2,
        image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _resnet() -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


_DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "num_queries": 5,
}
_VIT = {
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
_SQUARE = {"size": {"height": 64, "width": 64}}
_EDGES = {"size": {"shortest_edge": 48, "longest_edge": 96}}


def segformer(labels: Sequence[str] = LABELS) -> tuple[Any, Any]:
    import transformers as t

    config = t.SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **_labels(labels),
    )
    return t.SegformerForSemanticSegmentation(config), t.SegformerImageProcessorPil(**_SQUARE)


def upernet() -> tuple[Any, Any]:
    import transformers as t

    config = t.UperNetConfig(
        backbone_config=_swin(),
        hidden_size=16,
        auxiliary_channels=8,
        auxiliary_in_channels=48,
        pool_scales=[1, 2],
        **_labels(),
    )
    return t.UperNetForSemanticSegmentation(config), t.SegformerImageProcessorPil(**_SQUARE)


def beit() -> tuple[Any, Any]:
    import transformers as t

    config = t.BeitConfig(**_VIT, out_indices=[1, 2, 3, 4], pool_scales=[1, 2], **_labels())
    processor = t.BeitImageProcessorPil(**_SQUARE, do_center_crop=False)
    return t.BeitForSemanticSegmentation(config), processor


def data2vec() -> tuple[Any, Any]:
    import transformers as t

    config = t.Data2VecVisionConfig(
        **_VIT, out_indices=[0, 1, 2, 3], pool_scales=[1, 2], **_labels()
    )
    processor = t.BeitImageProcessorPil(**_SQUARE, do_center_crop=False)
    return t.Data2VecVisionForSemanticSegmentation(config), processor


def dpt() -> tuple[Any, Any]:
    import transformers as t

    config = t.DPTConfig(
        **_VIT,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
        **_labels(),
    )
    return t.DPTForSemanticSegmentation(config), t.DPTImageProcessorPil(**_SQUARE)


def mobilenet() -> tuple[Any, Any]:
    import transformers as t

    config = t.MobileNetV2Config(depth_multiplier=0.25, image_size=64, **_labels())
    processor = t.MobileNetV2ImageProcessorPil(size={"shortest_edge": 64}, do_center_crop=False)
    return t.MobileNetV2ForSemanticSegmentation(config), processor


def mobilevit() -> tuple[Any, Any]:
    import transformers as t

    config = t.MobileViTConfig(
        image_size=64,
        hidden_sizes=[16, 16, 16],
        neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16],
        num_attention_heads=2,
        aspp_out_channels=8,
        **_labels(),
    )
    processor = t.MobileViTImageProcessorPil(size={"shortest_edge": 64}, do_center_crop=False)
    return t.MobileViTForSemanticSegmentation(config), processor


def maskformer() -> tuple[Any, Any]:
    import transformers as t

    swin = {k: v for k, v in _swin().to_dict().items() if k in _SWIN_FIELDS}
    config = t.MaskFormerConfig(
        backbone_config=t.SwinConfig(**swin),
        fpn_feature_size=32,
        mask_feature_size=32,
        decoder_config=t.DetrConfig(**_DETR),
        **_labels(),
    )
    return t.MaskFormerForInstanceSegmentation(config), t.MaskFormerImageProcessorPil(**_EDGES)


_SWIN_FIELDS = ("embed_dim", "depths", "num_heads", "window_size", "image_size")


def mask2former() -> tuple[Any, Any]:
    import transformers as t

    config = t.Mask2FormerConfig(
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        num_attention_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        num_queries=7,
        **_labels(),
    )
    return t.Mask2FormerForUniversalSegmentation(config), t.Mask2FormerImageProcessorPil(**_EDGES)


class _Told:
    """OneFormer's image processor and tokenizer, saved together."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def save_pretrained(self, folder: Path) -> None:
        from transformers import CLIPTokenizer

        self.processor.save_pretrained(folder)
        letters = sorted(set("the task is semantic panoptic") - {" "})
        words = [word for c in letters for word in (c, f"{c}</w>")]
        words += ["<|startoftext|>", "<|endoftext|>"]
        vocabulary = {word: i for i, word in enumerate(words)}
        (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        names = (str(folder / "vocab.json"), str(folder / "merges.txt"))
        CLIPTokenizer(*names).save_pretrained(folder)


def oneformer() -> tuple[Any, Any]:
    import transformers as t

    config = t.OneFormerConfig(
        backbone_config=_swin(),
        num_queries=5,
        hidden_dim=32,
        conv_dim=32,
        mask_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        num_attention_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        query_dec_layers=1,
        is_training=False,
        **_labels(),
    )
    processor = t.OneFormerImageProcessorPil(
        **_EDGES, num_text=2, class_info_file=None, repo_path=None
    )
    return t.OneFormerForUniversalSegmentation(config), _Told(processor)


def eomt() -> tuple[Any, Any]:
    import transformers as t

    config = t.EomtConfig(
        **{**_VIT, "num_hidden_layers": 3},
        num_blocks=1,
        num_queries=5,
        num_upscale_blocks=1,
        **_labels(),
    )
    size = {"shortest_edge": 64, "longest_edge": 64}
    return t.EomtForUniversalSegmentation(config), t.EomtImageProcessorPil(size=size, do_pad=True)


def eomt_semantic() -> tuple[Any, Any]:
    import transformers as t

    size = {"shortest_edge": 64, "longest_edge": None}
    return eomt()[0], t.EomtImageProcessorPil(size=size, do_split_image=True)


def detr() -> tuple[Any, Any]:
    import transformers as t

    config = t.DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=_resnet(), **_DETR, **_labels()
    )
    size = {"shortest_edge": 64, "longest_edge": 96}
    return t.DetrForSegmentation(config), t.DetrImageProcessorPil(size=size)


def detr_boxes() -> tuple[Any, Any]:
    import transformers as t

    config = t.DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=_resnet(), **_DETR, **_labels()
    )
    size = {"shortest_edge": 64, "longest_edge": 96}
    return t.DetrForObjectDetection(config), t.DetrImageProcessorPil(size=size)


def vit(labels: Sequence[str] = LABELS) -> tuple[Any, Any]:
    import transformers as t

    config = t.ViTConfig(
        **{**_VIT, "image_size": 32, "num_hidden_layers": 1},
        **_labels(labels),
    )
    import torch

    model = t.ViTForImageClassification(config).eval()
    with torch.no_grad():  # tells images apart: classes around the mean of smooth ones
        shown = torch.nn.functional.interpolate(
            torch.rand(16, 3, 2, 2) * 2 - 1, 32, mode="bilinear"
        )
        seen = model.vit(shown).last_hidden_state[:, 0]
        head = model.classifier
        head.weight *= 2 / (seen @ head.weight.T).std(0).mean()
        head.bias.copy_(-(seen @ head.weight.T).mean(0))
    return model, t.ViTImageProcessorPil(size={"height": 32, "width": 32})


DENSE: tuple[Callable[[], tuple[Any, Any]], ...] = (
    segformer,
    upernet,
    beit,
    data2vec,
    dpt,
    mobilenet,
    mobilevit,
)
MASKS: tuple[Callable[[], tuple[Any, Any]], ...] = (
    maskformer,
    mask2former,
    oneformer,
    eomt,
    eomt_semantic,
    detr,
)


def lively(make: Callable[[], tuple[Any, Any]]) -> Callable[[], tuple[Any, Any]]:
    """The same with weights that let an image through.

    As transformers draws them, tiny networks say nearly the same of every pixel, some exactly.
    """

    def made() -> tuple[Any, Any]:
        import torch

        model, processor = make()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.kaiming_normal_(parameter)
        return model, processor

    return made


def write(folder: Path, make: Callable[[], tuple[Any, Any]], seed: int = 0) -> Path:
    """A model and its processor as a folder."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = make()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
