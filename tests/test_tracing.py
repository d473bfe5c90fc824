"""The depth order of tiny models of every class, hostile configs, and both spellings of keys."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from on_meta import build_on_meta, names_in_memory

from lwmm_hub.errors import LayerOrderError
from lwmm_hub.tracing import TracedArchitecture, trace_architecture

Config = dict[str, Any]

STAGES = ["stage1", "stage2", "stage3", "stage4"]
MIT: Config = {
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 2, 3, 4],
    "depths": [1, 2, 1, 1],
    "decoder_hidden_size": 16,
}
SEGFORMER: Config = {
    "architectures": ["SegformerForSemanticSegmentation"],
    "model_type": "segformer",
    **MIT,
}
VIT: Config = {
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}
BEIT: Config = {
    **VIT,
    "intermediate_size": 32,
    "auxiliary_channels": 8,
    "out_indices": [0, 1, 2, 3],
    "use_relative_position_bias": True,
}
DPT: Config = {
    **VIT,
    "intermediate_size": 32,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 8, 16, 16],
    "fusion_hidden_size": 16,
}
DINOV2: Config = {**VIT, "model_type": "dinov2", "image_size": 56, "patch_size": 14}
SWIN: Config = {
    "model_type": "swin",
    "image_size": 64,
    "patch_size": 2,
    "embed_dim": 12,
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 3, 4],
    "window_size": 4,
}
CONVNEXT: Config = {"model_type": "convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4}
RESNET: Config = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 2, 1],
}
BIT: Config = {
    "model_type": "bit",
    "layer_type": "bottleneck",
    "num_groups": 4,
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 96],
    "depths": [1, 1, 1],
    "out_features": STAGES[:3],
    "embedding_dynamic_padding": True,
    "global_padding": "SAME",
}
MOBILEVIT: Config = {
    "model_type": "mobilevit",
    "image_size": 64,
    "hidden_sizes": [16, 24, 32],
    "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32],
    "num_attention_heads": 2,
    "aspp_out_channels": 16,
}
DETR: Config = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 7,
    "use_timm_backbone": False,
    "backbone_config": {**RESNET, "out_features": STAGES},
}
MASKED: Config = {
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_attention_heads": 2,
    "num_queries": 7,
}
MASKFORMER: Config = {
    "model_type": "maskformer",
    "fpn_feature_size": 32,
    "mask_feature_size": 32,
    "decoder_config": {**DETR, "model_type": "detr"},
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
    "text_encoder_context_length": 7,
    "text_encoder_num_layers": 2,
    "text_encoder_vocab_size": 99,
    "text_encoder_n_ctx": 4,
    "task_seq_len": 7,
    "query_dec_layers": 2,
}


def in_upernet(backbone: Config, auxiliary_in_channels: int) -> Config:
    return {
        "model_type": "upernet",
        "hidden_size": 16,
        "auxiliary_channels": 8,
        "auxiliary_in_channels": auxiliary_in_channels,
        "backbone_config": {**backbone, "out_features": STAGES},
    }


def on(backbone: Config) -> Config:
    return {"backbone_config": {**backbone, "out_features": STAGES}}


PIXEL_ENCODER = "model.pixel_level_module.encoder"
# class[: variant] -> (config, path of the backbone, module that comes last)
ZOO: dict[str, tuple[Config, str, str]] = {
    "SegformerForSemanticSegmentation": (SEGFORMER, "segformer", "decode_head.classifier"),
    "SegformerForImageClassification": (SEGFORMER, "segformer", "classifier"),
    "GLPNForDepthEstimation": ({"model_type": "glpn", **MIT}, "glpn", "head.head.2"),
    "UperNetForSemanticSegmentation: Swin": (
        in_upernet(SWIN, 48),
        "backbone",
        "auxiliary_head.classifier",
    ),
    "UperNetForSemanticSegmentation: ConvNeXt": (
        in_upernet(CONVNEXT, 24),
        "backbone",
        "auxiliary_head.classifier",
    ),
    "UperNetForSemanticSegmentation: ResNet": (
        in_upernet(RESNET, 24),
        "backbone",
        "auxiliary_head.classifier",
    ),
    "BeitForSemanticSegmentation": (
        {"model_type": "beit", **BEIT},
        "beit",
        "auxiliary_head.classifier",
    ),
    "BeitForImageClassification": ({"model_type": "beit", **BEIT}, "beit", "classifier"),
    "Data2VecVisionForSemanticSegmentation": (
        {"model_type": "data2vec-vision", **BEIT},
        "data2vec_vision",
        "auxiliary_head.classifier",
    ),
    "DPTForSemanticSegmentation": (
        {"model_type": "dpt", **DPT},
        "dpt",
        "auxiliary_head.head.4",
    ),
    "DPTForDepthEstimation: hybrid": (
        {
            "model_type": "dpt",
            **DPT,
            "is_hybrid": True,
            "backbone_config": BIT,
            "backbone_featmap_shape": [1, 96, 4, 4],
            "neck_hidden_sizes": [32, 64, 16, 16],
            "readout_type": "project",
        },
        "dpt",
        "head.head.4",
    ),
    "DPTForDepthEstimation: DINOv2": (
        {
            "model_type": "dpt",
            **DPT,
            "backbone_config": {
                **DINOV2,
                "out_features": STAGES,
                "reshape_hidden_states": False,
            },
        },
        "backbone",
        "head.head.4",
    ),
    "MobileNetV2ForSemanticSegmentation": (
        {"model_type": "mobilenet_v2", "depth_multiplier": 0.25, "image_size": 64},
        "mobilenet_v2",
        "segmentation_head.classifier.convolution",
    ),
    "MobileViTForSemanticSegmentation": (
        MOBILEVIT,
        "mobilevit",
        "segmentation_head.classifier.convolution",
    ),
    "MaskFormerForInstanceSegmentation: Swin": (
        {**MASKFORMER, **on(SWIN)},
        PIXEL_ENCODER,
        "mask_embedder.2.0",
    ),
    "MaskFormerForInstanceSegmentation: ResNet": (
        {**MASKFORMER, **on(RESNET)},
        PIXEL_ENCODER,
        "mask_embedder.2.0",
    ),
    "Mask2FormerForUniversalSegmentation: Swin": (
        {**MASK2FORMER, **on(SWIN)},
        PIXEL_ENCODER,
        "class_predictor",
    ),
    "Mask2FormerForUniversalSegmentation: ResNet": (
        {**MASK2FORMER, **on(RESNET)},
        PIXEL_ENCODER,
        "class_predictor",
    ),
    "OneFormerForUniversalSegmentation": (
        {**ONEFORMER, **on(SWIN)},
        PIXEL_ENCODER,
        "model.transformer_module.decoder.mask_embed.layers.2.0",
    ),
    "EomtForUniversalSegmentation": (
        {"model_type": "eomt", **VIT, "num_queries": 7, "num_blocks": 2, "num_upscale_blocks": 1},
        "embeddings, layernorm, layers",
        "upscale_block.block.0.layernorm2d",
    ),
    "DetrForSegmentation": (
        {"model_type": "detr", **DETR},
        "detr.model.backbone",
        "mask_head.output_conv",
    ),
    "ConditionalDetrForSegmentation": (
        {"model_type": "conditional_detr", **DETR},
        "conditional_detr.model.backbone",
        "mask_head.output_conv",
    ),
    "SwinForImageClassification": (SWIN, "swin", "classifier"),
    "ResNetForImageClassification": (RESNET, "resnet", "classifier.1"),
    "ViTForImageClassification": ({"model_type": "vit", **VIT}, "vit", "classifier"),
    "Dinov2ForImageClassification": (DINOV2, "dinov2", "classifier"),
    "Dinov2Model": (DINOV2, "", "layernorm"),
}


def config_of(name: str) -> Config:
    """The tiny config of the zoo, as json gives it back."""
    config = {**ZOO[name][0], "architectures": [name.partition(":")[0]]}
    return dict(json.loads(json.dumps(config)))


def spellings(config: Config) -> tuple[list[str], list[str]]:
    """The keys that save_pretrained writes, and those with save_original_format=False."""
    from transformers.core_model_loading import revert_weight_conversion

    model = build_on_meta(config)
    tensors = model.state_dict()
    return sorted(revert_weight_conversion(model, tensors)), sorted(tensors)


@functools.cache
def traced_zoo(name: str) -> tuple[list[str], list[str], TracedArchitecture]:
    """Old keys, new keys, and what tracing the old ones gave."""
    config = config_of(name)
    old, new = spellings(config)
    return old, new, trace_architecture(config, old)


@functools.cache
def zoo_names(name: str) -> dict[str, str]:
    """Old key -> in-memory name."""
    return names_in_memory(config_of(name), traced_zoo(name)[0])


def module_order(traced: TracedArchitecture, names: Mapping[str, str]) -> list[str]:
    """The in-memory modules, first to last."""
    by_rank = sorted(traced.ranks, key=lambda key: traced.ranks[key])
    return list(dict.fromkeys(names[key].rpartition(".")[0] for key in by_rank))


@pytest.mark.parametrize("name", ZOO)
def test_every_key_has_a_rank_and_the_model_runs_from_embedding_to_head(name: str) -> None:
    config, (_, backbone_name, last) = config_of(name), ZOO[name]
    old, new, traced = traced_zoo(name)
    names = zoo_names(name)

    assert set(traced.ranks) == set(names) == set(old)  # no exceptions in the zoo
    assert traced.how == "forward pass traced on the meta device"
    assert traced.class_name == name.partition(":")[0]
    assert traced.backbone_name == backbone_name

    order = module_order(traced, names)
    assert re.search(r"embed|stem|conv_stem", order[0]), order[0]
    highest = max(traced.ranks.values())
    last_modules = {names[key].rpartition(".")[0] for key in old if traced.ranks[key] == highest}
    assert last in last_modules
    assert last_modules - {last} <= {"criterion"}  # the constants of a loss never run
    assert sorted(set(traced.ranks.values())) == list(range(highest + 1))

    assert traced.backbone == {
        key
        for key, alias in names.items()
        if not backbone_name
        or any(alias.startswith(f"{part}.") for part in backbone_name.split(", "))
    }
    if backbone_name:
        assert 0.2 < len(traced.backbone) / len(old) < 1

    renamed = trace_architecture(config, new)
    assert set(names.values()) == set(new)
    assert renamed.ranks == {names[key]: rank for key, rank in traced.ranks.items()}


@pytest.mark.parametrize("name", ZOO)
def test_the_blocks_of_the_backbone_run_in_the_order_of_their_numbers(name: str) -> None:
    (_, _, traced), names = traced_zoo(name), zoo_names(name)
    numbered: dict[str, dict[int, list[int]]] = {}
    for key in traced.backbone:
        found = re.match(r"(.*?(?:layers?|stages|block|blocks))\.(\d+)\.", names[key])
        if found:
            ranks = numbered.setdefault(found.group(1), {}).setdefault(int(found.group(2)), [])
            ranks.append(traced.ranks[key])
    assert numbered
    for blocks in numbered.values():
        means = [sum(blocks[i]) / len(blocks[i]) for i in sorted(blocks)]
        assert means == sorted(means)


@pytest.mark.parametrize(
    "name",
    [
        "SegformerForSemanticSegmentation",
        "GLPNForDepthEstimation",
        "UperNetForSemanticSegmentation: ConvNeXt",
        "MobileViTForSemanticSegmentation",
        "ResNetForImageClassification",
    ],
)
def test_the_traced_order_is_the_order_in_which_forward_hooks_fire(name: str) -> None:
    import torch
    import transformers

    config, (_, _, traced) = config_of(name), traced_zoo(name)
    model_class = getattr(transformers, traced.class_name)
    model = model_class(model_class.config_class.from_dict(config)).eval()
    fired: list[str] = []
    for path, module in model.named_modules():
        leaf = not list(module.children())
        if leaf and list(module.parameters(recurse=False)):
            module.register_forward_hook(lambda *_, path=path: fired.append(path))
    with torch.no_grad():
        model(pixel_values=torch.zeros(1, 3, 64, 64))

    last_fired = {path: moment for moment, path in enumerate(fired)}
    hooked = sorted(last_fired, key=lambda path: last_fired[path])
    main = [path for path in hooked if "auxiliary" not in path]
    assert [path for path in module_order(traced, zoo_names(name)) if path in set(main)] == main


def test_saved_files_of_both_spellings_and_any_key_order_give_one_order(tmp_path: Path) -> None:
    import transformers
    from safetensors import safe_open

    model = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(**MIT, num_labels=5)
    )
    keys: dict[bool, list[str]] = {}
    transformers.utils.logging.disable_progress_bar()
    for original in (True, False):
        folder = tmp_path / str(original)
        model.save_pretrained(folder, save_original_format=original)
        with safe_open(folder / "model.safetensors", "np") as file:
            keys[original] = list(file.keys())
    config = json.loads((tmp_path / "True" / "config.json").read_text())
    old, new = (trace_architecture(config, keys[original]) for original in (True, False))
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in old.ranks
    names = [names_in_memory(config, keys[original]) for original in (True, False)]
    assert names[0]["segformer.encoder.block.0.0.attention.self.query.weight"] == (
        "segformer.stages.0.blocks.0.attention.q_proj.weight"
    )
    assert module_order(old, names[0]) == module_order(new, names[1])
    assert trace_architecture(config, keys[True][::-1]).ranks == old.ranks


def test_weight_bias_and_statistics_of_a_module_share_a_rank() -> None:
    ranks = traced_zoo("SegformerForSemanticSegmentation")[2].ranks
    names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert len({ranks[f"decode_head.batch_norm.{name}"] for name in names}) == 1


def test_tracing_leaves_nothing_in_the_caches_that_real_models_use() -> None:
    """BEiT caches its index of relative positions by window size, whatever the device."""
    from transformers.models.beit.modeling_beit import BeitRelativePositionBias

    config = {**config_of("BeitForSemanticSegmentation"), "patch_size": 8}
    trace_architecture(config, spellings(config)[0])
    side = config["image_size"] // 8
    index = BeitRelativePositionBias.generate_relative_position_index((side, side))
    assert index.device.type == "cpu"


def test_keys_that_the_class_does_not_know_are_absent() -> None:
    config = config_of("ViTForImageClassification")
    old, _ = spellings(config)
    traced = trace_architecture(config, [*old, "ema.weight", "vit.encoder.layer.0.foo", "x"])
    assert set(traced.ranks) == set(old)


def test_a_tensor_that_transformers_splits_on_loading_takes_the_rank_of_the_first() -> None:
    config = {**config_of("Dinov2ForImageClassification"), "use_swiglu_ffn": True}
    old, _ = spellings(config)
    traced = trace_architecture(config, old)
    assert set(traced.ranks) == set(old)
    fused = "dinov2.encoder.layer.0.mlp.weights_in.weight"
    assert names_in_memory(config, old)[fused] == "dinov2.encoder.layer.0.mlp.gate_proj.weight"
    below = traced.ranks["dinov2.encoder.layer.0.norm2.weight"]
    above = traced.ranks["dinov2.encoder.layer.0.mlp.weights_out.weight"]
    assert below < traced.ranks[fused] < above


def test_older_files_old_data2vec_heads_and_swin_index_buffers() -> None:
    config = config_of("Data2VecVisionForSemanticSegmentation")
    head = {
        "decode_head.bottleneck.conv.weight": "decode_head.psp_bottleneck.convolution.weight",
        "decode_head.bottleneck.bn.running_mean": (
            "decode_head.psp_bottleneck.normalization.running_mean"
        ),
        "auxiliary_head.convs.0.bn.weight": "auxiliary_head.convs.0.normalization.weight",
    }
    keys = [*head, *spellings(config)[0]]
    names = names_in_memory(config, keys)
    assert {key: names[key] for key in head} == head
    assert set(head) <= set(trace_architecture(config, keys).ranks)

    config = config_of("SwinForImageClassification")
    block = "swin.encoder.layers.0.blocks.0.attention.self"
    index, table = f"{block}.relative_position_index", f"{block}.relative_position_bias_table"
    traced = trace_architecture(config, [*spellings(config)[0], index])
    assert traced.ranks[index] == traced.ranks[table]

    config = config_of("DetrForSegmentation")  # its batch norms are frozen: no such buffer
    counted = "detr.model.backbone.model.embedder.embedder.normalization.num_batches_tracked"
    traced = trace_architecture(config, [*spellings(config)[1], counted])
    assert traced.ranks[counted] == traced.ranks[counted.replace("num_batches_tracked", "weight")]


def test_a_forward_pass_that_meta_tensors_cannot_take_runs_on_zeros() -> None:
    config = {
        "architectures": ["SuperPointForKeypointDetection"],
        "model_type": "superpoint",
        "encoder_hidden_sizes": [8, 8, 16, 16],
        "decoder_hidden_size": 32,
        "descriptor_decoder_dim": 32,
    }
    old, _ = spellings(config)
    traced = trace_architecture(config, old)
    assert traced.how == "forward pass traced with zeros"
    assert traced.backbone_name == "encoder"
    assert module_order(traced, names_in_memory(config, old))[0] == "encoder.conv_blocks.0.conv_a"


def test_without_the_rename_tables_of_transformers_names_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of("SegformerForSemanticSegmentation")
    old, new = spellings(config)
    monkeypatch.setitem(sys.modules, "transformers.core_model_loading", None)
    assert names_in_memory(config, new) == {key: key for key in new}
    assert set(trace_architecture(config, new).ranks) == set(new)
    assert set(trace_architecture(config, old).ranks) == set(old) & set(new)


# ------------------------------------------------------------------------------ configs in the wild


def test_nulls_that_strict_configs_refuse_are_dropped() -> None:
    config = config_of("DetrForSegmentation")
    old, _ = spellings(config)
    traced = trace_architecture({**config, "dilation": None, "auxiliary_loss": None}, old)
    assert set(traced.ranks) == set(old)


def test_a_decoder_config_that_names_a_timm_backbone_needs_neither_timm_nor_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    config = config_of("MaskFormerForInstanceSegmentation: Swin")
    old, _ = spellings(config)
    del config["decoder_config"]["backbone_config"]
    config["decoder_config"] |= {
        "use_timm_backbone": True,
        "use_pretrained_backbone": True,
        "backbone": "resnet50",
        "backbone_kwargs": {"in_chans": 3, "out_indices": [1, 2, 3, 4], "output_stride": 16},
    }
    assert set(trace_architecture(config, old).ranks) == set(old)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_missing_package_is_named() -> None:
    config = {**config_of("DetrForSegmentation"), "backbone": "resnet50"}
    config |= {"use_timm_backbone": True, "backbone_config": None}
    with pytest.raises(LayerOrderError, match=r"needs timm, .* Run `pip install timm`"):
        trace_architecture(config, ["a.weight"] * 300)


@pytest.mark.parametrize("name", ["microsoft/resnet-50", "hf-hub:me/evil", "local-dir:/tmp/x"])
def test_a_backbone_named_by_reference_is_not_fetched(name: str) -> None:
    config = {**config_of("DetrForSegmentation"), "backbone": name, "backbone_config": None}
    with pytest.raises(LayerOrderError, match="by reference"):
        trace_architecture(config, ["a.weight"] * 300)


# -------------------------------------------------------------------------------- hostile configs

BACKBONE = SWIN | {"out_features": STAGES}
HOSTILE: dict[str, Config] = {
    "depth": {"model_type": "vit", "num_hidden_layers": 10**9},
    "depth just over the number of keys": {"num_encoder_blocks": 201},
    "depths in all": {"depths": [100, 100, 100, 100]},
    "nested depth": {"backbone_config": BACKBONE | {"depths": [1, 1, 10**9, 1]}},
    "image": {"image_size": 10**9},
    "image in a list": {"image_size": [64, 10**9]},
    "width": {"hidden_sizes": [8, 16, 24, 10**12]},
    "classes": {"num_labels": 10**9},
    "infinity": {"mlp_ratio": float("inf")},
    "not a number": {"mlp_ratio": float("nan")},
    "huge float": {"depth_multiplier": 1e300},
    "huge integer": {"reshape_last_stage": 10**400},
    "negative": {"hidden_sizes": [-(10**9)]},
    "nodes": {"x": [1] * 300_000},
    "nesting": {"x": [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_numbers_are_refused_before_anything_is_built(what: str) -> None:
    started = time.process_time()
    with pytest.raises(LayerOrderError, match=r"^config\.json .*\. Check ") as caught:
        trace_architecture(SEGFORMER | HOSTILE[what], [f"{i}.weight" for i in range(200)])
    assert time.process_time() - started < 1
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_come_to_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    assert transformers.LevitForImageClassification  # the import does not count
    monkeypatch.setattr("lwmm_hub.tracing.guard.MAX_SECONDS", 1.0)
    config = {"architectures": ["LevitForImageClassification"], "model_type": "levit"}
    started = time.monotonic()
    with pytest.raises(LayerOrderError, match="does not run within 1 s"):
        trace_architecture(config | {"image_size": 8192}, ["a.weight"] * 400)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": None}, "names no class"),
        ({"architectures": [{}]}, "names no class"),
        ({"architectures": ["os"]}, "not a model class"),
        ({"architectures": ["MyOwnSegmenter"]}, "'MyOwnSegmenter' is not a model class"),
        ({"architectures": ["PreTrainedModel"]}, "not a model class"),
        ({"architectures": ["AutoModel"]}, "not a model class"),
        ({"architectures": ["SegformerImageProcessor"]}, "not a model class"),
        ({"architectures": ["__class__"]}, "not a model class"),
        ({"architectures": ["models.segformer"]}, "not a model class"),
        ({"architectures": ["BertModel"]}, "does not take images"),
        ({"architectures": ["GLPNForDepthEstimation"]}, "model_type 'segformer', but"),
        ({"hidden_sizes": "wide"}, "cannot be built"),
        ({"hidden_act": "no such"}, "cannot be built"),
        ({"id2label": {"a": "b"}}, "cannot be built"),
    ],
)
def test_what_cannot_be_traced_is_said_in_one_line(change: Config, message: str) -> None:
    with pytest.raises(LayerOrderError, match=message) as caught:
        trace_architecture(SEGFORMER | change, traced_zoo("SegformerForSemanticSegmentation")[0])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_keys_of_another_model_are_refused() -> None:
    with pytest.raises(LayerOrderError, match="None of the 200 keys"):
        trace_architecture(SEGFORMER, [f"blocks.{i}.weight" for i in range(200)])


def test_a_config_that_is_no_object_is_refused() -> None:
    with pytest.raises(LayerOrderError, match="holds a list"):
        trace_architecture([], ["a"])  # type: ignore[arg-type]


def test_code_beside_the_config_is_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    witness = tmp_path / "ran"
    (tmp_path / "modeling_evil.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    classes = ("AutoConfig", "AutoModel", "AutoBackbone", "AutoModelForSemanticSegmentation")
    remote = {
        "auto_map": dict.fromkeys(classes, "modeling_evil.Evil"),
        "trust_remote_code": True,
        "_name_or_path": str(tmp_path),
        "attn_implementation": "me/evil-kernel",
        "_attn_implementation": "me/evil-kernel",
        "quantization_config": {"quant_method": "modeling_evil"},
    }
    config = config_of("UperNetForSemanticSegmentation: Swin")
    old, _, plain = traced_zoo("UperNetForSemanticSegmentation: Swin")
    hostile = {**config, **remote, "backbone_config": {**config["backbone_config"], **remote}}
    assert trace_architecture(hostile, old) == plain
    with pytest.raises(LayerOrderError, match="code from a repository is never run"):
        trace_architecture({**hostile, "architectures": ["Evil"]}, old)
    with pytest.raises(LayerOrderError, match="never run"):
        trace_architecture({**hostile, "architectures": ["modeling_evil.Evil"]}, old)
    assert "modeling_evil" not in sys.modules
    assert not witness.exists()


# ------------------------------------------------------------------------------------- manners


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def test_importing_the_module_imports_neither_torch_nor_transformers() -> None:
    code = """
import sys, lwmm_hub.tracing
print([name for name in ("torch", "transformers", "numpy") if name in sys.modules])
"""
    assert run(code).stdout == "[]\n"


def test_tracing_is_silent_and_leaves_transformers_as_it_was() -> None:
    code = """
import json, sys
from lwmm_hub.tracing import trace_architecture
names = ["decode_head.classifier.weight"] * 200
assert trace_architecture(json.loads(sys.argv[1]), names).ranks
import torch, transformers
state = torch.random.get_rng_state()
before = transformers.utils.logging.get_verbosity(), transformers.backbone_utils.hf_api
assert trace_architecture(json.loads(sys.argv[1]), names).ranks
assert (transformers.utils.logging.get_verbosity(), transformers.backbone_utils.hf_api) == before
assert bool((torch.random.get_rng_state() == state).all())
"""
    config = config_of("UperNetForSemanticSegmentation: Swin")
    done = run(code, json.dumps({**config, "num_labels": 7, "id2label": {"0": "a"}}))
    assert (done.stdout, done.stderr) == ("", "")


def test_a_time_limit_leaves_no_trace_in_the_interpreter() -> None:
    """A debugger or a coverage tool hung afterwards, where an alarm had been revoked."""
    program = """
import sys, time
from lwmm_hub.tracing.guard import OutOfTime, _time_limit
with _time_limit(60):
    pass
try:
    with _time_limit(0.01):
        while True:
            pass
except OutOfTime:
    print("ended")
sys.settrace(lambda *_: None)
def traced():
    print("traced")
traced()
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["ended", "traced"]
