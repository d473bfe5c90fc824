"""Tiny models of transformers classes, merged, loaded and run; and what no table knows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from test_tracing import ZOO

import lwmm_hub as lw
from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.key_map import match_keys, name_keys, natural_order

NOISE = 0.3
CLASSES = 19, 150

# an architecture that no table knows
SEGGPT = "SegGptForImageSegmentation"
WITHOUT_TABLE: dict[str, Any] = {
    SEGGPT: {
        "model_type": "seggpt",
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": [64, 32],
        "patch_size": 16,
        "pretrain_image_size": 32,
        "decoder_hidden_size": 8,
        "merge_index": 0,
        "intermediate_hidden_state_indices": [1, 2, 3],
    }
}

# model -> what 19 and 150 classes make different; the last module that is merged
MODELS: dict[str, tuple[set[str], str]] = {
    "UperNetForSemanticSegmentation: Swin": (
        {"decode_head.classifier.weight", "decode_head.classifier.bias",
         "auxiliary_head.classifier.weight", "auxiliary_head.classifier.bias"},
        "head.auxiliary.convs.0.norm",
    ),
    "Mask2FormerForUniversalSegmentation: Swin": (
        {"class_predictor.weight", "class_predictor.bias"},
        "model.transformer_module.decoder.mask_predictor.mask_embedder.2.0",
    ),
    "BeitForSemanticSegmentation": (
        {"decode_head.classifier.weight", "decode_head.classifier.bias",
         "auxiliary_head.classifier.weight", "auxiliary_head.classifier.bias"},
        "head.auxiliary.convs.0.norm",
    ),
    "DPTForSemanticSegmentation": (
        {"head.head.4.weight", "head.head.4.bias",
         "auxiliary_head.head.4.weight", "auxiliary_head.head.4.bias"},
        "head.auxiliary.norm",
    ),
    "MobileNetV2ForSemanticSegmentation": (
        {"segmentation_head.classifier.convolution.weight",
         "segmentation_head.classifier.convolution.bias"},
        "segmentation_head.conv_projection.normalization",
    ),
    "MobileViTForSemanticSegmentation": (
        {"segmentation_head.classifier.convolution.weight",
         "segmentation_head.classifier.convolution.bias"},
        "segmentation_head.aspp.project.normalization",
    ),
    "DetrForSegmentation": (
        {"detr.class_labels_classifier.weight", "detr.class_labels_classifier.bias"},
        "head.masks.output",
    ),
    "MaskFormerForInstanceSegmentation: Swin": (
        {"class_predictor.weight", "class_predictor.bias"},
        "head.mask_embedder.2",
    ),
    "EomtForUniversalSegmentation": (
        {"class_predictor.weight", "class_predictor.bias"},
        "upscale_block.block.0.layernorm2d",
    ),
}  # fmt: skip

# norms that a Swin backbone runs for nothing
UNUSED = (
    "swin.layernorm.weight",
    "swin.layernorm.bias",
    "encoder.model.layernorm.weight",
    "encoder.model.layernorm.bias",
)


def ancestor(name: str, classes: int) -> Any:
    model_class = getattr(transformers, name.partition(":")[0])
    config = WITHOUT_TABLE[name] if name in WITHOUT_TABLE else ZOO[name][0]
    torch.manual_seed(0)
    return model_class(model_class.config_class.from_dict({**config, "num_labels": classes}))


def tuned(name: str, classes: int, seed: int) -> Any:
    """A descendant of the one ancestor of `CLASSES[0]` classes."""
    model, first = ancestor(name, classes), ancestor(name, CLASSES[0]).state_dict()
    values = model.state_dict()
    trained = {key for key, _ in model.named_parameters()}
    random = torch.Generator().manual_seed(seed)
    for key, value in values.items():
        if first[key].shape == value.shape:
            value.copy_(first[key])
        if key in trained or "running_" in key:
            spread = float(value.std()) if value.ndim > 1 else 0.05
            value += NOISE * spread * torch.randn(value.shape, generator=random)
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


def save(model: Any, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' own making
        model.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("name", MODELS)
def test_two_fine_tuned_models_merge_load_and_run(name: str, tmp_path: Path) -> None:
    classifier, last = MODELS[name]
    folders = [
        save(tuned(name, classes, seed), tmp_path / f"{classes} classes")
        for seed, classes in enumerate(CLASSES, start=1)
    ]
    result = lw.merge(*folders, output=tmp_path / "merged")
    plan = result.plan
    anchor, donor = (load_file(folder / "model.safetensors") for folder in folders)
    assert sorted(anchor) == sorted(donor)

    class_name = name.partition(":")[0]
    tables = name_keys(entries({key: value.shape for key, value in anchor.items()})).found
    if tables[0].backbone:  # tables know the whole model, so nothing is traced
        kinds = [f"{t.name} {'backbone' if t.backbone else 'head'}" for t in tables]
        assert plan.order_source == f"the table of the {' and '.join(kinds)}"
    else:
        assert name == "DetrForSegmentation"
        traced = f"the forward pass of {class_name}, traced on the meta device"
        assert plan.order_source == traced
    assert plan.layers[-1].name == last
    assert plan.layers[-1].weights == (1.0, 0.0)
    backbones = [part for part, backbone, _ in plan.parts if backbone]
    assert backbones == ["backbone" if tables[0].backbone else ZOO[name][1]]
    assert {r.verdict for r in plan.relatedness} == {"related"}
    assert all(0.85 < r.cosine < 0.95 for r in plan.relatedness if r.cosine)

    other_shape = {key for key, why in plan.kept.items() if why.startswith("shape differs: (")}
    assert other_shape == classifier
    for key in other_shape:
        assert plan.kept[key] == f"shape differs: {anchor[key].shape} vs {donor[key].shape}"
    constants = {
        key
        for key, value in anchor.items()
        if value.dtype == np.int64 or re.search(r"empty_weight|attn_mask_probs", key)
    }
    unused = {key for key in anchor if key.endswith(UNUSED)}
    assert set(plan.kept) == other_shape | constants | unused
    assert all("never averaged" in plan.kept[key] for key in constants)

    merged = load_file(tmp_path / "merged" / "model.safetensors")
    weights = {tensor.key: tensor.weights for tensor in plan.merged}
    assert set(weights) | set(plan.kept) == set(merged) == set(anchor)
    for key, value in merged.items():
        if key in plan.kept:
            assert np.array_equal(value, anchor[key]), key
        else:
            mine, theirs = weights[key]
            expected = mine * anchor[key].astype(np.float64) + theirs * donor[key]
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=key)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' own making
        model = result.load()  # refuses missing and unexpected keys
        with torch.no_grad():
            output = model(pixel_values=torch.rand(1, 3, 64, 64))
    assert model.config.num_labels == CLASSES[0]
    logits = [value for key, value in output.items() if key.endswith("logits")]
    assert logits
    assert all(bool(torch.isfinite(value).all()) for value in logits)


@pytest.mark.parametrize(
    "name", ["Mask2FormerForUniversalSegmentation: Swin", "DetrForSegmentation"]
)
def test_what_tables_know_whole_needs_no_torch(name: str, tmp_path: Path) -> None:
    folders = [str(save(tuned(name, 19, seed), tmp_path / str(seed))) for seed in (1, 2)]
    code = (
        "import sys, lwmm_hub as lw; "
        f"lw.merge(*{folders!r}, output={str(tmp_path / 'merged')!r}); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_equal_class_counts_do_not_average_the_constants_of_a_loss(tmp_path: Path) -> None:
    """Mask2Former and EoMT save the weights of their loss and the state of their training."""
    name = "EomtForUniversalSegmentation"
    models = [tuned(name, CLASSES[0], seed) for seed in (1, 2)]
    for i, model in enumerate(models):
        model.attn_mask_probs.fill_(i)
        model.criterion.empty_weight[-1] = 0.1 + i
    folders = [save(model, tmp_path / str(i)) for i, model in enumerate(models)]
    plan = lw.merge(*folders, output=tmp_path / "merged").plan
    assert plan.kept == {
        "attn_mask_probs": "the state of a training schedule is never averaged",
        "criterion.empty_weight": "class weights of a loss are never averaged",
    }
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged["attn_mask_probs"].tolist() == [0.0] * len(merged["attn_mask_probs"])
    assert merged["criterion.empty_weight"][-1] == pytest.approx(0.1)


def test_frozen_batch_norms_merge_their_statistics_with_their_layer(tmp_path: Path) -> None:
    name = "DetrForSegmentation"
    folders = [save(tuned(name, 19, seed), tmp_path / str(seed)) for seed in (1, 2)]
    plan = lw.plan(*folders)
    frozen = [t for t in plan.merged if t.key.endswith("embedder.normalization.running_var")]
    assert len(frozen) == 1
    layer = [t for t in plan.merged if t.layer == frozen[0].layer]
    assert sorted(t.name.rpartition(".")[2] for t in layer) == [
        "bias", "running_mean", "running_var", "weight"
    ]  # fmt: skip
    assert len({t.weights for t in layer}) == 1


@pytest.mark.parametrize(
    ("name", "part"), [("MobileViTForSemanticSegmentation", "backbone"), (SEGGPT, "model")]
)
def test_an_independent_training_is_refused(name: str, part: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model_class = getattr(transformers, name)
    config = WITHOUT_TABLE.get(name) or ZOO[name][0]
    other = model_class(model_class.config_class.from_dict({**config, "num_labels": 19}))
    folders = save(tuned(name, 19, 1), tmp_path / "a"), save(other, tmp_path / "b")
    with pytest.raises(lw.LwmmError, match=f"a and b are unrelated: their {part} weights"):
        lw.merge(*folders, output=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# --------------------------------------------------------------------------- when tracing fails


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"architectures": ["MyOwnSegmenter"]}, "'MyOwnSegmenter' is not a model class of"),
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM does not take images"),
        ({"num_hidden_layers": 10_000}, "config.json says num_hidden_layers = 10000"),
        ({"hidden_size": "wide"}, "cannot be built and run from this config"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_plan_says_which_order_stands_in_for_a_forward_pass(
    tmp_path: Path, fields: Mapping[str, Any], why: str
) -> None:
    name = SEGGPT
    folders = [save(tuned(name, 19, seed), tmp_path / str(seed)) for seed in (1, 2)]
    traced = lw.plan(*folders)
    edit_config(folders[0], **fields)

    plan = lw.plan(*folders)
    assert plan.order_source.startswith("natural order of the names (")
    assert why in plan.order_source
    assert why in " ".join(str(plan).split())
    assert {t.key for t in plan.merged} == {t.key for t in traced.merged}
    blocks = [
        int(found.group(1))
        for layer in plan.layers
        if (found := re.match(r"model\.encoder\.layers\.(\d+)\.", layer.name))
    ]
    assert blocks == sorted(blocks)
    assert blocks[-1] == 3

    # A file of torch keeps the order in which the modules were made.
    for folder in folders:
        values = {
            k: torch.from_numpy(v) for k, v in load_file(folder / "model.safetensors").items()
        }
        by_registration = [k for k in ancestor(name, 19).state_dict() if k in values]
        rest = [k for k in values if k not in by_registration]
        ordered = {key: values[key] for key in [*by_registration, *rest]}
        torch.save(ordered, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    plan = lw.plan(*folders)
    assert plan.order_source.startswith("the file's own registration order (")
    assert why in plan.order_source


def test_without_a_config_names_decide(tmp_path: Path) -> None:
    """A network of no family: a MobileNetV2 with other words for its layers."""
    files = []
    for seed in (1, 2):
        values = tuned("MobileNetV2ForSemanticSegmentation", 19, seed).state_dict()
        files.append(tmp_path / f"{seed}.safetensors")
        renamed = {key.replace("convolution", "conv"): v.numpy() for key, v in values.items()}
        save_file(renamed, files[-1])
    plan = lw.plan(*files, check_weights=True)
    assert plan.order_source == "natural order of the names"
    assert {part: backbone for part, backbone, _ in plan.parts} == {
        "mobilenet_v2": True,
        "segmentation_head": False,
    }
    assert [layer.part for layer in plan.layers[:5]] == ["mobilenet_v2"] * 5
    assert plan.layers[-1].part == "segmentation_head"


# --------------------------------------------------------------------------- by headers alone


def entries(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32") -> dict[str, TensorEntry]:
    return {
        key: TensorEntry(key, dtype, shape, "f", i) for i, (key, shape) in enumerate(shapes.items())
    }


def test_a_wrapper_around_all_keys_does_not_hide_the_parts() -> None:
    names = ["decode_head.0.weight", "backbone.2.weight", "backbone.10.weight"]
    model = entries({f"net.{name}": (4, 4) for name in names})
    key_map = match_keys([model, model], ["a", "b"], lambda: natural_order(list(model)))
    assert [(part.name, part.backbone) for part in key_map.parts] == [
        ("net.backbone", True),
        ("net.decode_head", False),
    ]
    assert [p.layer for p in key_map.shared] == [
        "net.backbone.2", "net.backbone.10", "net.decode_head.0"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("leaf", "why"),
    [
        ("weight_g", "a part of weight norm or spectral norm is never averaged by itself"),
        ("weight_v", "a part of weight norm or spectral norm is never averaged by itself"),
        ("num_batches_tracked", "a counter is never averaged"),
        ("relative_position_index", "an index is never averaged"),
        ("pixel_mean", "constants of the anchor's image processing are never averaged"),
    ],
)
def test_floats_without_a_mean_are_the_anchors(leaf: str, why: str) -> None:
    model = entries({"encoder.conv.weight": (4, 4), f"encoder.other.{leaf}": (4, 1)})
    key_map = match_keys([model, model], ["a", "b"], lambda: natural_order(list(model)))
    assert [p.name for p in key_map.shared] == ["encoder.conv.weight"]
    assert key_map.kept == {f"encoder.other.{leaf}": why}
    assert key_map.unused == ({f"encoder.other.{leaf}": why},)


def test_a_file_cast_to_half_precision_as_a_whole_keeps_its_counters(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    first = random.standard_normal((8, 8)).astype(np.float16)
    for i in (0, 1):
        noise = random.standard_normal((8, 8)).astype(np.float16) * np.float16(0.3)
        save_file(
            {
                "encoder.conv.weight": first + noise,
                "encoder.norm.weight": np.ones(8, np.float16),
                "encoder.norm.num_batches_tracked": np.asarray(1000.0 + i, np.float16),
            },
            tmp_path / f"{i}.safetensors",
        )
    lw.merge(tmp_path / "0.safetensors", tmp_path / "1.safetensors", output=tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged["encoder.norm.num_batches_tracked"] == 1000
