"""The enumerators agree with the manifests at full size and with transformers at tiny size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from enumerators import (
    B0,
    B1,
    B5,
    TINY,
    Entry,
    SegformerSize,
    ancestor,
    fill,
    finetuned,
    glpn,
    mit_nvlabs,
    neutral_shapes,
    segformer_model_only,
    segformer_model_only_old,
    segformer_nvlabs,
    segformer_smp,
    segformer_transformers_4,
    segformer_transformers_new,
    segformer_transformers_old,
    spell_glpn,
    spell_mit_nvlabs,
    spell_model_only,
    spell_model_only_old,
    spell_nvlabs,
    spell_smp,
    spell_transformers_4,
    spell_transformers_new,
    spell_transformers_old,
    transformers_config,
    with_classes,
    write_pth,
    write_safetensors,
    write_transformers_folder,
)

SHARED = Path(__file__).parents[2] / "shared"
CODES = {"float32": "F32", "int64": "I64"}

Listing = list[tuple[str, tuple[int, ...], str]]


def manifest(name: str) -> Listing:
    if not SHARED.is_dir():
        pytest.skip("../shared is absent")
    content = json.loads((SHARED / "manifests" / f"{name}.json").read_text(encoding="utf-8"))
    return [(key, tuple(shape), CODES[dtype]) for key, shape, dtype in content["keys"]]


def listing(entries: list[Entry]) -> Listing:
    return [(entry.key, entry.shape, entry.dtype) for entry in entries]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE=1 for one test, however early huggingface_hub was imported."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# manifests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("hf_segformer_b0_19__old_on_disk", segformer_transformers_old(B0)),
        ("hf_segformer_b5_19__old_on_disk", segformer_transformers_old(B5)),
        ("hf_segformer_b0_19__new", segformer_transformers_new(B0)),
        ("hf_segformer_b0_150__new", segformer_transformers_new(B0.with_classes(150))),
        ("hf_segformer_b1_19__new", segformer_transformers_new(B1)),
        ("hf_segformer_b1_150__new", segformer_transformers_new(B1.with_classes(150))),
        ("hf_segformer_b5_19__new", segformer_transformers_new(B5)),
        ("hf_segformer_b5_150__new", segformer_transformers_new(B5.with_classes(150))),
        ("hf_segformermodel_b0__new", segformer_model_only(B0)),
        ("hf_segformermodel_b1__new", segformer_model_only(B1)),
        ("hf_segformermodel_b5__new", segformer_model_only(B5)),
        ("nvlabs_segformer_b0_150", segformer_nvlabs(B0.with_classes(150))),
        ("nvlabs_segformer_b5_19", segformer_nvlabs(B5)),
        ("smp_segformer_mit_b0_19", segformer_smp(B0)),
        # smp's own default is width 256 whatever the backbone; that is what the manifest lists.
        ("smp_segformer_mit_b5_19", segformer_smp(replace(B5, decoder_width=256))),
    ],
)
def test_enumeration_is_the_manifest_entry_by_entry(name: str, entries: list[Entry]) -> None:
    assert listing(entries) == manifest(name)


def test_smp_b5_at_width_768_differs_from_the_manifest_in_the_head_widths_alone() -> None:
    """The width of NVlabs' B5 is 768, and so is that of smp models converted from it."""
    wider = {256: 768, 1024: 3072}

    def widened(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if key.startswith("decoder.mlp_stage."):  # the columns are the backbone's
            return (wider[shape[0]], *shape[1:])
        if key.startswith(("decoder.fuse_stage.", "segmentation_head.")):
            return tuple(wider.get(n, n) for n in shape)
        return shape

    expected = [
        (key, widened(key, shape), dtype)
        for key, shape, dtype in manifest("smp_segformer_mit_b5_19")
    ]
    assert listing(segformer_smp(B5)) == expected
    assert ("decoder.fuse_stage.0.weight", (768, 3072, 1, 1), "F32") in expected


@pytest.mark.parametrize("name", ["smp_unet_mit_b5_19", "smp_fpn_mit_b5_19"])
def test_the_encoder_of_other_smp_models_is_the_prefixed_mit(name: str) -> None:
    encoder = [entry for entry in manifest(name) if entry[0].startswith("encoder.")]
    assert listing(mit_nvlabs(B5, prefix="encoder.")) == encoder


@pytest.mark.parametrize("name", ["daformer_mitb5_19__segmentor", "hrda_mitb5_19__segmentor"])
def test_the_backbone_of_daformer_and_hrda_is_the_prefixed_mit(name: str) -> None:
    backbone = [entry for entry in manifest(name) if entry[0].startswith("backbone.")]
    assert listing(mit_nvlabs(B5, prefix="backbone.")) == backbone


# transformers ------------------------------------------------------------------------------------


def segformer_config(size: SegformerSize):
    from transformers import SegformerConfig

    content = transformers_config(size)
    return SegformerConfig(**{key: value for key, value in content.items() if key != "model_type"})


def state_listing(model) -> Listing:
    return [
        (key, tuple(value.shape), "F32" if value.dtype.is_floating_point else "I64")
        for key, value in model.state_dict().items()
    ]


def file_listing(path: Path) -> Listing:
    """Keys, shapes and dtypes of a safetensors header, sorted by key."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        return sorted(
            (key, tuple(value.get_shape()), value.get_dtype()) for key, value in slices.items()
        )


@pytest.mark.parametrize("size", [TINY, replace(TINY, depths=(1, 1, 1, 1), mlp_ratio=2)])
def test_tiny_segformer_of_transformers_has_the_new_names_in_memory_and_the_old_on_disk(
    size: SegformerSize, tmp_path: Path, offline: None
) -> None:
    from transformers import SegformerForSemanticSegmentation, SegformerModel

    model = SegformerForSemanticSegmentation(segformer_config(size))
    assert state_listing(model) == listing(segformer_transformers_new(size))
    model.save_pretrained(tmp_path / "whole")
    on_disk = file_listing(tmp_path / "whole" / "model.safetensors")
    assert on_disk == sorted(listing(segformer_transformers_old(size)))

    backbone = SegformerModel(segformer_config(size))
    assert state_listing(backbone) == listing(segformer_model_only(size))
    backbone.save_pretrained(tmp_path / "backbone")
    on_disk = file_listing(tmp_path / "backbone" / "model.safetensors")
    assert on_disk == sorted(listing(segformer_model_only_old(size)))


@pytest.mark.parametrize("decoder_width", [16, 20])  # 16 is also a stage's width: one layer less
def test_tiny_glpn_of_transformers_has_the_enumerated_names(
    decoder_width: int, tmp_path: Path, offline: None
) -> None:
    from transformers import GLPNConfig, GLPNForDepthEstimation

    size = replace(TINY, decoder_width=decoder_width)
    model = GLPNForDepthEstimation(
        GLPNConfig(
            depths=size.depths,
            hidden_sizes=size.widths,
            num_attention_heads=size.heads,
            sr_ratios=size.sr_ratios,
            mlp_ratios=(size.mlp_ratio,) * 4,
            decoder_hidden_size=size.decoder_width,
        )
    )
    assert state_listing(model) == listing(glpn(size))
    model.save_pretrained(tmp_path)
    assert file_listing(tmp_path / "model.safetensors") == sorted(listing(glpn(size)))


def test_transformers_4_has_the_module_order_that_glpn_kept() -> None:
    four = [key for key, _, _ in listing(segformer_transformers_4(TINY))]
    kept = [key for key, _, _ in listing(glpn(TINY)) if key.startswith("glpn.")]
    assert four[: len(kept)] == [key.replace("glpn.", "segformer.", 1) for key in kept]
    assert sorted(listing(segformer_transformers_4(TINY))) == sorted(
        listing(segformer_transformers_old(TINY))
    )


def test_the_written_config_is_what_transformers_would_write(offline: None) -> None:
    written = transformers_config(TINY)
    of_transformers = json.loads(json.dumps(segformer_config(TINY).to_dict()))
    assert written == {key: of_transformers[key] for key in written}
    assert written["id2label"]["0"] == "road"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dialect", ["old", "new"])
def test_a_written_folder_loads_with_nothing_missing_and_nothing_unexpected(
    dialect: str, sharded: bool, dtype: str, tmp_path: Path, offline: None
) -> None:
    import torch
    from transformers import AutoModelForSemanticSegmentation

    neutral = with_classes(finetuned(ancestor(TINY, 1), seed=2), n=7, seed=3)
    folder = write_transformers_folder(tmp_path, neutral, TINY, dialect, sharded, dtype)
    model, report = AutoModelForSemanticSegmentation.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values()), report
    assert model.dtype == getattr(torch, dtype)
    assert list(model.config.id2label) == list(range(7))
    assert model.config.id2label[6] == "traffic light"
    expected = spell_transformers_new(neutral, TINY)
    for key, value in model.state_dict().items():
        cast_there = torch.from_numpy(expected[key]).to(value.dtype)
        assert torch.equal(value, cast_there), key


def test_the_preprocessor_of_a_written_folder_loads(tmp_path: Path, offline: None) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor

    folder = write_transformers_folder(tmp_path, ancestor(TINY, 1), TINY)
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor(Image.new("RGB", (40, 30)), return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64)


# values ------------------------------------------------------------------------------------------

SPELLINGS = [
    (spell_transformers_old, segformer_transformers_old),
    (spell_transformers_4, segformer_transformers_4),
    (spell_transformers_new, segformer_transformers_new),
    (spell_nvlabs, segformer_nvlabs),
    (spell_mit_nvlabs, mit_nvlabs),
    (spell_smp, segformer_smp),
    (spell_glpn, glpn),
    (spell_model_only, segformer_model_only),
    (spell_model_only_old, segformer_model_only_old),
]
WHOLE = (
    spell_transformers_old,
    spell_transformers_4,
    spell_transformers_new,
    spell_nvlabs,
    spell_smp,
)


@pytest.mark.parametrize(("spelling", "enumeration"), SPELLINGS)
def test_each_spelling_writes_every_neutral_value_once_in_file_order(spelling, enumeration) -> None:
    neutral = ancestor(TINY, 0)
    spelled = spelling(neutral, TINY)
    entries = enumeration(TINY)
    dtypes = {np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}
    assert [(k, v.shape, dtypes[v.dtype]) for k, v in spelled.items()] == listing(entries)

    parts = [part for entry in entries for part in entry.parts]
    assert len(parts) == len(set(parts))
    head = {name for name in neutral if name.startswith("head.")}
    expected = set(neutral) if spelling in WHOLE else set(neutral) - head
    assert set(parts) == expected
    for entry in entries:
        if entry.parts:
            stacked = [neutral[part] for part in entry.parts]
            value = np.concatenate(stacked) if len(stacked) > 1 else stacked[0]
            assert np.array_equal(spelled[entry.key], value)


def test_fused_rows_are_keys_then_values_and_smp_stages_are_reversed() -> None:
    neutral = ancestor(TINY, 0)
    fused = spell_nvlabs(neutral, TINY)["backbone.block2.0.attn.kv.weight"]
    old = spell_transformers_old(neutral, TINY)
    attention = "segformer.encoder.block.1.0.attention.self"
    assert np.array_equal(fused[:16], old[f"{attention}.key.weight"])
    assert np.array_equal(fused[16:], old[f"{attention}.value.weight"])

    smp = spell_smp(neutral, TINY)
    for i in range(4):
        assert np.array_equal(
            smp[f"decoder.mlp_stage.{i}.linear.weight"],
            old[f"decode_head.linear_c.{3 - i}.proj.weight"],
        )


def test_fill_gives_positive_variances_integer_counters_and_the_same_values_again() -> None:
    entries = segformer_nvlabs(TINY)
    values = fill(entries, seed=4)
    assert [(e.key, e.shape) for e in entries] == [(k, v.shape) for k, v in values.items()]
    bn = "decode_head.linear_fuse.bn"
    assert (values[f"{bn}.running_var"] > 0).all()
    assert values[f"{bn}.num_batches_tracked"].dtype == np.int64
    again, other = fill(entries, seed=4), fill(entries, seed=5)
    assert all(np.array_equal(values[key], again[key]) for key in values)
    assert not any(np.array_equal(values[key], other[key]) for key in values)


def test_finetuned_models_stay_near_their_ancestor_and_go_different_ways() -> None:
    origin = ancestor(TINY, 0)
    one, two = finetuned(origin, 1), finetuned(origin, 2)
    assert list(one) == list(origin) == list(neutral_shapes(TINY))
    name = "stage3.block0.mlp_in.weight"
    scale = origin[name].std()
    step_one, step_two = (model[name] - origin[name] for model in (one, two))
    assert step_one.std() / scale == pytest.approx(0.3, rel=0.1)
    correlation = np.corrcoef(step_one.ravel(), step_two.ravel())[0, 1]
    assert abs(correlation) < 0.1
    assert all(value.dtype == origin[name].dtype for name, value in one.items())
    assert (one["head.norm.variance"] > 0).all()
    assert one["head.norm.counter"] != two["head.norm.counter"]


def test_another_number_of_classes_changes_the_classifier_alone() -> None:
    origin = ancestor(TINY, 0)
    other = with_classes(origin, 9, seed=1)
    changed = [name for name in origin if other[name] is not origin[name]]
    assert changed == ["head.classifier.weight", "head.classifier.bias"]
    spelled = spell_nvlabs(other, TINY)
    assert spelled["decode_head.linear_pred.weight"].shape == (9, 16, 1, 1)
    assert spelled["decode_head.conv_seg.weight"].shape == (9, 128, 1, 1)


# files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_a_pth_file_gives_the_tensors_back_in_order(
    wrapper: str | None, legacy: bool, tmp_path: Path
) -> None:
    import torch

    values = spell_nvlabs(ancestor(TINY, 0), TINY)
    values["half"] = np.ones((2, 3), dtype=ml_dtypes.bfloat16)
    path = write_pth(tmp_path / "model.pth", values, wrapper, prefix="module.", legacy=legacy)
    assert (path.read_bytes()[:2] == b"PK") is not legacy
    content = torch.load(path, weights_only=True)
    state = content if wrapper is None else content[wrapper]
    assert list(state) == [f"module.{key}" for key in values]
    assert state.pop("module.half").dtype == torch.bfloat16
    assert all(np.array_equal(value.numpy(), values[key[7:]]) for key, value in state.items())


def test_a_safetensors_file_gives_the_tensors_back(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    values = spell_transformers_old(ancestor(TINY, 0), TINY)
    loaded = load_file(write_safetensors(tmp_path / "model.safetensors", values))
    assert sorted(loaded) == sorted(values)
    assert all(np.array_equal(loaded[key], values[key]) for key in values)
