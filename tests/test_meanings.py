"""Equal shapes of unlike meaning: other classes, other settings, other inputs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clients import files_of, lwmm_hub
from enumerators import (
    TINY,
    ancestor,
    finetuned,
    spell_nvlabs,
    write_safetensors,
    write_transformers_folder,
)
from hub import TestHub
from safetensors.numpy import load_file

import lwmm_hub as lw

START = ancestor(TINY, seed=0)
CLASSES = len(START["head.classifier.bias"])
NAMES = [f"class {i}" for i in range(CLASSES)]
SWAPPED = [NAMES[1], NAMES[0], *NAMES[2:]]
CLASSIFIER = {"decode_head.classifier.weight", "decode_head.classifier.bias"}


def segformer(folder: Path, seed: int, labels: Sequence[str] | None = None, **config: Any) -> Path:
    """A relative of all others; `config` changes its config.json."""
    write_transformers_folder(folder, finetuned(START, seed), TINY, labels=labels)
    return changed(folder, "config.json", **config)


def changed(folder: Path, name: str, **fields: Any) -> Path:
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return folder


def merged_keys(plan: lw.MergePlan) -> set[str]:
    return {tensor.key for tensor in plan.merged}


# ------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("labels", [SWAPPED, [f"other {name}" for name in NAMES]])
def test_a_classifier_of_other_classes_stays_the_anchors(labels: list[str], tmp_path: Path) -> None:
    anchor = segformer(tmp_path / "anchor", 1, NAMES)
    donor = segformer(tmp_path / "donor", 2, labels)
    draft = lw.plan(anchor, donor)
    result = lw.merge(anchor, donor, output=tmp_path / "out", schedule="isotropic")
    for plan in (draft, result.plan):
        assert set(plan.kept) >= CLASSIFIER
        assert not merged_keys(plan) & CLASSIFIER
        assert "decode_head.linear_fuse.weight" in merged_keys(plan)
        why = f"other classes (0 is 'class 0' in anchor and {labels[0]!r} in donor)"
        assert plan.kept["decode_head.classifier.weight"] == why
        assert f"head.classifier: {why}. The anchor's is kept." in plan.warnings
        assert plan.models[1].kept_parts == ("head.classifier",)
    found, own = (load_file(folder / "model.safetensors") for folder in (result.folder, anchor))
    assert all(np.array_equal(found[key], own[key]) for key in CLASSIFIER)
    card = (result.folder / "README.md").read_text(encoding="utf-8")
    assert "head.classifier" in card
    lw.verify(result.folder)


@pytest.mark.parametrize("meta", ["mmcv", "mmengine"])
def test_classes_that_a_training_noted_beside_its_weights_are_compared(
    meta: str, tmp_path: Path
) -> None:
    def run(name: str, seed: int, labels: list[str]) -> Path:
        values = spell_nvlabs(finetuned(START, seed), TINY)
        state = {key: torch.from_numpy(value.copy()) for key, value in values.items()}
        noted = (
            {"CLASSES": tuple(labels)} if meta == "mmcv" else {"dataset_meta": {"classes": labels}}
        )
        torch.save({"meta": noted, "state_dict": state}, tmp_path / f"{name}.pth")
        return tmp_path / f"{name}.pth"

    anchor = run("anchor", 1, NAMES)
    plan = lw.plan(anchor, run("donor", 2, SWAPPED))
    why = "other classes (0 is 'class 0' in anchor and 'class 1' in donor)"
    assert plan.kept["decode_head.linear_pred.weight"] == why
    config = lw.plan(anchor, segformer(tmp_path / "folder", 3, SWAPPED))
    assert config.kept["decode_head.linear_pred.weight"] == why.replace("donor", "folder")
    same = lw.plan(anchor, run("same", 3, [name.replace(" ", "_").upper() for name in NAMES]))
    assert "decode_head.linear_pred.weight" in merged_keys(same)


def test_a_donor_of_the_same_classes_still_takes_part_in_the_classifier(tmp_path: Path) -> None:
    plan = lw.plan(
        segformer(tmp_path / "anchor", 1, NAMES),
        segformer(tmp_path / "swapped", 2, SWAPPED),
        segformer(tmp_path / "same", 3, NAMES),
        schedule="isotropic",
        check_weights=True,
    )
    (weight,) = (t for t in plan.merged if t.key == "decode_head.classifier.weight")
    assert weight.weights == (0.5, 0.0, 0.5)
    assert [model.kept_parts for model in plan.models] == [(), ("head.classifier",), ()]
    assert plan.unused[0].keys() >= CLASSIFIER


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (NAMES, [name.upper().replace(" ", "_") for name in NAMES]),
        (NAMES, [f"LABEL_{i}" for i in range(CLASSES)]),
        ([f"label {i}" for i in range(CLASSES)], NAMES),
    ],
)
def test_names_that_say_the_same_or_nothing_change_nothing(
    mine: list[str], theirs: list[str], tmp_path: Path
) -> None:
    plan = lw.plan(segformer(tmp_path / "a", 1, mine), segformer(tmp_path / "b", 2, theirs))
    assert merged_keys(plan) >= CLASSIFIER
    assert plan.warnings == ()


@pytest.mark.parametrize(
    "labels", [None, [], "road", {"0": "road"}, {"x": "y"}, {str(i): i for i in range(CLASSES)}]
)
def test_a_configuration_without_a_list_of_names_is_no_statement(
    labels: Any, tmp_path: Path
) -> None:
    anchor = segformer(tmp_path / "a", 1, NAMES)
    plan = lw.plan(anchor, segformer(tmp_path / "b", 2, id2label=labels))
    assert merged_keys(plan) >= CLASSIFIER
    assert plan.warnings == ()


def test_what_is_asked_for_is_merged_with_a_warning(tmp_path: Path) -> None:
    models = segformer(tmp_path / "a", 1, NAMES), segformer(tmp_path / "b", 2, SWAPPED)
    everything = lw.plan(*models, scope="all")
    assert merged_keys(everything) >= CLASSIFIER
    assert any("Merged all the same (--scope all)" in text for text in everything.warnings)
    backbone = lw.plan(*models, scope="backbone")
    assert not any("other classes" in text for text in backbone.warnings)


def test_a_recipe_from_before_gives_what_it_gave(tmp_path: Path) -> None:
    """It holds no verdict on the classifier, and its scope is decided."""
    models = segformer(tmp_path / "a", 1, NAMES), segformer(tmp_path / "b", 2, SWAPPED)
    new = lw.merge(*models, output=tmp_path / "new", schedule="isotropic")
    text = (new.folder / "lwmm_recipe.yaml").read_text(encoding="utf-8")
    old = re.sub(r"\n +kept_parts:(\n +)?[ -]*\[?head.classifier\]?", "", text)
    assert old != text
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "old.yaml").write_text(old, encoding="utf-8")
    again = lw.merge_recipe(tmp_path / "recipes" / "old.yaml", output=tmp_path / "again")
    assert merged_keys(again.plan) >= CLASSIFIER
    assert any("Merged all the same (as the recipe says)" in text for text in again.warnings)
    lw.verify(again.folder)


@pytest.mark.parametrize(
    ("layer", "rows"),
    [
        ("classifier", 0),
        ("fc", 0),
        ("head.class_predictor", 1),
        ("decode_head.cls_seg", 0),
        ("segmentation_head.0", 0),
        ("aux_classifier.4", 0),
    ],
)
def test_classifiers_are_known_by_their_rows_and_names(
    layer: str, rows: int, tmp_path: Path
) -> None:
    config = {"id2label": {"0": "road", "1": "sky", "2": "car"}}
    other = {"id2label": {"0": "sky", "1": "road", "2": "car"}}
    rng = np.random.default_rng(0)
    names = {f"{layer}.weight": (3 + rows, 6), f"{layer}.bias": (3 + rows,)}
    alike = {"decode_head.fuse.weight": (3, 6), "backbone.fc1.weight": (3, 6)}
    values = {k: rng.normal(size=s).astype(np.float32) for k, s in {**names, **alike}.items()}
    folders = []
    for i, said in enumerate((config, other)):
        folders.append(tmp_path / str(i))
        folders[-1].mkdir()
        write_safetensors(folders[-1] / "model.safetensors", values)
        (folders[-1] / "config.json").write_text(json.dumps(said))
    plan = lw.plan(*folders, check_weights=True)
    assert merged_keys(plan) == set(alike)
    assert set(plan.kept) == set(names)


def test_a_head_that_is_its_classifier_alone_is_kept_and_verifies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"encoder.a.weight": (8, 8), "encoder.b.weight": (8, 8), "classifier.weight": (2, 8)}
    values = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    for name, labels in (("one", ["cat", "dog"]), ("two", ["dog", "cat"])):
        (tmp_path / name).mkdir()
        write_safetensors(tmp_path / name / "model.safetensors", values)
        config = {"id2label": dict(enumerate(labels))}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    result = lw.merge(tmp_path / "one", tmp_path / "two", output=tmp_path / "out")
    assert merged_keys(result.plan) == {"encoder.a.weight", "encoder.b.weight"}
    assert result.plan.models[1].kept_parts == ("classifier",)
    lw.verify(result.folder)


# ------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("mine", "theirs", "said"),
    [
        ({}, {"num_attention_heads": [2, 2, 2, 2]}, "num_attention_heads: "),
        ({}, {"hidden_act": "relu"}, "hidden_act: 'gelu' vs 'relu'"),
        ({}, {"strides": [2, 2, 2, 2]}, "strides: [4, 2, 2, 2] vs [2, 2, 2, 2]"),
        ({}, {"downsample_in_bottleneck": True}, "downsample_in_bottleneck: False vs True"),
        ({"window_size": 7}, {"window_size": 12}, "window_size: 7 vs 12"),
        (
            {"backbone_out_indices": [0, 1, 2, 3]},
            {"backbone_out_indices": [3, 2, 1, 0]},
            "backbone_out_indices: [0, 1, 2, 3] vs [3, 2, 1, 0]",
        ),
        (
            {"backbone_config": {"model_type": "swin", "num_heads": [3, 6]}},
            {"backbone_config": {"model_type": "swin", "num_heads": [6, 6]}},
            "backbone_config.num_heads: [3, 6] vs [6, 6]",
        ),
        (  # of a backbone in two networks
            {"backbone_config": {"window_size": 7, "out_features": ["stage4"]}},
            {"model_type": "swin", "window_size": 12, "out_features": ["stage1"]},
            "(window_size: 7 vs 12)",
        ),
    ],
)
def test_networks_of_equal_shapes_that_compute_otherwise_are_warned_about(
    mine: dict[str, Any], theirs: dict[str, Any], said: str, tmp_path: Path
) -> None:
    models = segformer(tmp_path / "a", 1, **mine), segformer(tmp_path / "b", 2, **theirs)
    (warning,) = lw.plan(*models).warnings
    assert warning.startswith("a and b are unlike networks of equal shapes (")
    assert said in warning
    assert "choose a donor of the same settings" in warning


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({}, {"layer_norm_eps": 1e-5, "drop_path_rate": 0.3, "initializer_range": 1}),
        ({}, {"hidden_act": "gelu_new"}),
        ({"patch_size": 16}, {"patch_size": [16, 16]}),
        ({}, {"num_attention_heads": None}),
        ({}, {"downsample_in_bottleneck": False}),
        ({}, {"window_size": {"any": "thing"}, "hidden_act": [[[["gelu"]]]]}),
        ({"out_features": ["a"]}, {"out_features": ["b"], "architectures": ["Other"]}),
        ({"backbone_config": {"num_heads": 1}}, {"backbone_config": "swin"}),
    ],
)
def test_settings_that_change_nothing_or_are_not_there_are_no_matter(
    mine: dict[str, Any], theirs: dict[str, Any], tmp_path: Path
) -> None:
    models = segformer(tmp_path / "a", 1, **mine), segformer(tmp_path / "b", 2, **theirs)
    assert lw.plan(*models).warnings == ()


# -------------------------------------------------------------------------------------- inputs

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
FILE = "preprocessor_config.json"


def two(tmp_path: Path, mine: dict[str, Any], theirs: dict[str, Any]) -> tuple[Path, Path]:
    models = segformer(tmp_path / "a", 1), segformer(tmp_path / "b", 2)
    for folder, fields in zip(models, (mine, theirs), strict=True):
        (folder / FILE).write_text(json.dumps(fields))
    return models


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "image_mean: [0.485, 0.456, 0.406] vs"),
        ({"do_normalize": False, **IMAGENET}, "do_normalize: not given vs False"),
        ({"do_rescale": False, **IMAGENET}, "do_rescale: not given vs False"),
        ({"rescale_factor": 1.0, **IMAGENET}, "rescale_factor: "),
        ({**IMAGENET, "do_flip_channel_order": True}, "do_flip_channel_order: False vs True"),
    ],
)
def test_models_that_see_images_otherwise_are_warned_about(
    theirs: dict[str, Any], said: str, tmp_path: Path
) -> None:
    models = two(tmp_path, {**IMAGENET, "do_flip_channel_order": False}, theirs)
    (warning,) = lw.plan(*models).warnings
    assert warning.startswith("b was trained on other inputs than a (")
    assert said in warning
    assert "the result prepares images as the anchor does" in warning


@pytest.mark.parametrize(
    "theirs",
    [
        {**IMAGENET, "do_rescale": True, "rescale_factor": 0.00392156862745098, "size": 224},
        {"image_mean": [0.4850001, 0.456, 0.406], "image_std": [0.229, 0.224, 0.2251]},
        {  # the same in bytes
            "do_rescale": False,
            "image_mean": [123.675, 116.28, 103.53],
            "image_std": [58.395, 57.12, 57.375],
        },
        {"size": 512},
        {"image_mean": "imagenet", "image_std": [0, 0, 0]},
        {"image_mean": [10**400] * 3, "image_std": [1e-300] * 3},
        {**IMAGENET, "rescale_factor": None},
        [],
    ],
)
def test_inputs_that_are_the_same_or_unknown_are_no_matter(theirs: Any, tmp_path: Path) -> None:
    assert lw.plan(*two(tmp_path, IMAGENET, theirs)).warnings == ()


def test_a_processor_inside_another_file_or_a_broken_one(tmp_path: Path) -> None:
    models = two(tmp_path, IMAGENET, {})
    (models[1] / FILE).write_text("{")
    assert lw.plan(*models).warnings == ()
    inner = {"image_processor": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}}
    (models[1] / "processor_config.json").write_text(json.dumps(inner))
    (warning,) = lw.plan(*models).warnings
    assert "image_std" in warning


def test_on_the_hub_the_merge_looks_and_the_plan_asks_for_no_file_more(
    hub: TestHub, tmp_path: Path
) -> None:
    for folder in two(tmp_path, IMAGENET, {"do_normalize": False}):
        hub.create_repo(f"org/{folder.name}", files_of(folder))
    place = {"hub": hub, "home": tmp_path / "home", "cwd": tmp_path / "cwd"}
    plan = lwmm_hub("plan", "org/a", "org/b", "--json", **place)
    assert plan.data["warnings"] == []
    assert not [record for record in hub.requests if FILE in record.path]
    merged = lwmm_hub("merge", "org/a", "org/b", "-o", "out", **place)
    assert merged.code == 0
    assert "b was trained on other inputs than org/a" in merged.err
    again = lwmm_hub("plan", "org/a", "org/b", "--json", **place)  # what is in the cache is read
    (warning,) = again.data["warnings"]
    assert "other inputs" in warning
