"""`convert`: any checkpoint as safetensors, in its own keys or as a model of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from enumerators import (
    B0,
    CITYSCAPES_LABELS,
    TINY,
    SegformerSize,
    ancestor,
    cast,
    finetuned,
    glpn,
    mit_nvlabs,
    segformer_model_only_old,
    segformer_transformers_old,
    spell,
    spell_glpn,
    spell_model_only_old,
    spell_nvlabs,
    spell_smp,
    spell_transformers_new,
    spell_transformers_old,
    write_pth,
    write_safetensors,
    write_transformers_folder,
)
from enumerators.nvlabs_forward import nvlabs_logits
from hub import TestHub
from safetensors import safe_open
from safetensors.numpy import load_file
from stories import Command, run

import lwmm_hub as lw
from lwmm_hub.errors import CheckpointError, MergeError, OutputError, UsageError
from lwmm_hub.writing import sha256_of

# shapes do not show them, and TINY is no published size
UNSHOWN = {"num_attention_heads": list(TINY.heads), "strides": [4, 2, 2, 2]}
TOLERANCE = 1e-4  # of logits around 1: norms of NVlabs have eps 1e-6, those of transformers 1e-5


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def neutral(size: SegformerSize, seed: int = 1) -> dict[str, np.ndarray]:
    return finetuned(ancestor(size, seed=0), seed)


def daformer(folder: Path, size: SegformerSize = TINY) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A training checkpoint as DAFormer writes it, with its three copies; the copies' values."""
    copies = {
        "model.": neutral(size, 1),
        "ema_model.": neutral(size, 2),
        "imnet_model.": neutral(size, 3),
    }
    head = {
        "decode_head.embed_layers.0.proj.weight": np.ones((4, 8), np.float32),
        "decode_head.conv_seg.weight": np.ones((5, 4, 1, 1), np.float32),
    }
    tensors = {
        copy + key: value
        for copy, values in copies.items()
        for key, value in (spell(mit_nvlabs(size, "backbone."), values) | head).items()
    }
    return write_pth(folder / "latest.pth", tensors, wrapper="state_dict"), copies


def same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def pixels() -> torch.Tensor:
    # height and width differ, so that a transposed grid cannot go unnoticed
    return torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))


def loaded_whole(folder: Path, class_name: str) -> Any:
    """The model, by transformers itself, which finds no key missing, left over or misshapen."""
    import transformers

    model, found = getattr(transformers, class_name).from_pretrained(
        folder, output_loading_info=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not found[what], (what, found[what])
    return model.eval()


# in its own keys --------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapping", [
    {},
    {"wrapper": "state_dict"},
    {"wrapper": "model", "prefix": "module."},
    {"wrapper": "state_dict", "legacy": True},
])  # fmt: skip
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "folder"])
def test_a_pickle_becomes_the_same_tensors(
    tmp_path: Path, wrapping: dict[str, Any], as_file: bool
) -> None:
    values = spell_nvlabs(neutral(TINY), TINY)
    source = write_pth(tmp_path / "city.pth", values, **wrapping)
    out = tmp_path / ("city.safetensors" if as_file else "city")
    result = lw.convert(source, out)
    file = out if as_file else out / "model.safetensors"
    same(load_file(file), values)
    assert result.files == {file.name: sha256_of(file)}
    assert result.tensors == len(values)
    with safe_open(file, "np") as opened:
        assert opened.metadata() == {"format": "pt", "converted_with": "lwmm-hub"}
    again = lw.convert(out, tmp_path / "again.safetensors")
    assert set(again.files.values()) == set(result.files.values()), "the same bytes"


def test_the_wanted_copy_is_written_and_the_others_are_listed(tmp_path: Path) -> None:
    source, copies = daformer(tmp_path)
    result = lw.convert(f"{source}?weights=ema", tmp_path / "ema.safetensors")
    found = load_file(result.path)
    backbone = spell(mit_nvlabs(TINY, "backbone."), copies["ema_model."])
    assert {k: v.tobytes() for k, v in backbone.items()}.items() <= {
        k: v.tobytes() for k, v in found.items()
    }.items()
    assert result.source == "latest (ema weights)"
    others = {
        key
        for key, why in result.left_out.items()
        if why == "another copy of the weights (?weights=imagenet)"
    }
    assert len(others) == len(backbone) + 2
    assert all(key.startswith("imnet_model.") for key in others)
    assert "left out: " in str(result)


def test_a_folder_of_transformers_keeps_what_lies_beside_its_weights(tmp_path: Path) -> None:
    source = write_transformers_folder(tmp_path / "city", neutral(TINY), TINY, sharded=True)
    (source / "LICENSE").write_text("for research only\n")
    (source / "notes.txt").write_text("private")
    result = lw.convert(source, tmp_path / "out")
    assert sorted(p.name for p in result.path.iterdir()) == [
        "LICENSE", "config.json", "lwmm_conversion.json", "model.safetensors",
        "preprocessor_config.json",
    ]  # fmt: skip
    assert (result.path / "config.json").read_bytes() == (source / "config.json").read_bytes()
    same(load_file(result.path / "model.safetensors"), spell_transformers_old(neutral(TINY), TINY))
    record = (result.path / "lwmm_conversion.json").read_text()
    assert str(tmp_path) not in record
    assert json.loads(record)["sha256"] == result.files


def test_another_dtype_rounds_floats_and_leaves_counters(tmp_path: Path) -> None:
    values = spell_nvlabs(neutral(TINY), TINY)
    source = write_pth(tmp_path / "city.pth", values)
    for dtype in ("float16", "bfloat16"):
        result = lw.convert(source, tmp_path / f"{dtype}.safetensors", dtype=dtype)
        with safe_open(result.path, "pt") as opened:
            found = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        for key, value in values.items():
            expected = torch.from_numpy(value)
            if value.dtype == np.float32:
                expected = expected.to(getattr(torch, dtype))
            assert torch.equal(found[key], expected), key
    half = write_safetensors(tmp_path / "half.safetensors", cast(values, "bfloat16"))
    wide = lw.convert(half, tmp_path / "wide.safetensors", dtype="float32")
    same(
        load_file(wide.path),
        {
            k: v.astype(np.float32) if v.dtype != np.int64 else v
            for k, v in cast(values, "bfloat16").items()
        },
    )


def test_a_nan_keeps_its_bits_and_a_value_too_large_is_refused(tmp_path: Path) -> None:
    odd = np.array([0x7FC00123, 0xFF800000, 0x80000000, 0x00000001], np.uint32).view(np.float32)
    source = write_safetensors(tmp_path / "odd.safetensors", {"a": odd})
    result = lw.convert(source, tmp_path / "same.safetensors")
    assert load_file(result.path)["a"].tobytes() == odd.tobytes()
    large = write_safetensors(tmp_path / "large.safetensors", {"a": np.float32([1e6])})
    with pytest.raises(MergeError, match="a has a value that is too large for float16"):
        lw.convert(large, tmp_path / "small.safetensors", dtype="float16")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "large.safetensors",
        "odd.safetensors",
        "same.safetensors",
    ]


def test_shards_hold_every_tensor_once(tmp_path: Path) -> None:
    values = spell_nvlabs(neutral(TINY), TINY)
    result = lw.convert(
        write_pth(tmp_path / "a.pth", values), tmp_path / "out", max_shard_size="50KB"
    )
    assert len(result.files) > 2
    index = json.loads((result.path / "model.safetensors.index.json").read_text())
    found: dict[str, np.ndarray] = {}
    for name in result.files:
        part = load_file(result.path / name)
        assert all(index["weight_map"][key] == name for key in part)
        assert found.keys().isdisjoint(part)
        found |= part
    same(found, values)
    one = lw.convert(result.path, tmp_path / "one.safetensors")
    same(load_file(one.path), values)


def test_tied_and_strided_tensors_are_written_with_their_values(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {"base": base, "tied": base, "turned": base.T, "tail": base[2:, 1:4],
               "wide": base[:1].expand(5, 6)}  # fmt: skip
    torch.save(tensors, tmp_path / "odd.pth")
    result = lw.convert(tmp_path / "odd.pth", tmp_path / "odd.safetensors")
    same(
        load_file(result.path), {key: value.contiguous().numpy() for key, value in tensors.items()}
    )


# as a model of transformers ---------------------------------------------------------------------


SPELLINGS = {
    "nvlabs": spell_nvlabs,
    "smp": spell_smp,
    "new": spell_transformers_new,
    "old": spell_transformers_old,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("size", [TINY, B0], ids=["tiny", "b0"])
def test_a_segformer_of_any_spelling_loads_whole_and_computes_the_same(
    tmp_path: Path, spelling: str, size: SegformerSize
) -> None:
    values = neutral(size)
    tensors = SPELLINGS[spelling](values, size)
    source = write_pth(tmp_path / "city.pth", tensors)
    config = UNSHOWN if size is TINY else None
    result = lw.convert(source, tmp_path / "out", to="transformers", config=config)
    model = loaded_whole(result.path, "SegformerForSemanticSegmentation")
    with torch.no_grad():
        logits = model(pixels()).logits
    expected = nvlabs_logits(spell_nvlabs(values, size), size, pixels())
    assert 0.3 < float(expected.std()) < 3
    assert float((logits - expected).abs().max()) < TOLERANCE
    stored = load_file(result.path / "model.safetensors")
    same(stored, spell_transformers_old(values, size))
    assert {e.key: e.shape for e in segformer_transformers_old(size)} == {
        k: v.shape for k, v in stored.items()
    }
    fused = {"nvlabs": 2 * sum(size.depths), "smp": 2 * sum(size.depths), "new": 0, "old": 0}
    assert result.split == fused[spelling]
    dead = (
        {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
        if spelling == "nvlabs"
        else set()
    )
    assert set(result.left_out) == dead
    assert result.load().config.num_labels == size.num_classes


def test_daformers_backbone_becomes_a_segformer_model(tmp_path: Path) -> None:
    from enumerators.nvlabs_forward import _backbone, _Scope

    source, copies = daformer(tmp_path, B0)
    for copy, prefix in (
        ("student", "model."),
        ("ema", "ema_model."),
        ("imagenet", "imnet_model."),
    ):
        result = lw.convert(f"{source}?weights={copy}", tmp_path / copy, to="transformers")
        assert result.class_name == "SegformerModel"
        model = loaded_whole(result.path, "SegformerModel")
        same(load_file(result.path / "model.safetensors"), spell_model_only_old(copies[prefix], B0))
        with torch.no_grad():
            found = model(pixels(), output_hidden_states=True)
            weights = {
                k: torch.from_numpy(v) for k, v in spell(mit_nvlabs(B0), copies[prefix]).items()
            }
            expected = _backbone(_Scope(weights, ""), B0, pixels())
        for ours, theirs in zip(found.hidden_states, expected, strict=True):
            assert float((ours - theirs).abs().max()) < TOLERANCE
        assert (
            result.left_out["decode_head.embed_layers.0.proj.weight"]
            == "not part of a SegformerModel"
        )


def test_a_bare_backbone_and_glpns_become_segformer_models(tmp_path: Path) -> None:
    values = neutral(TINY)
    bare = write_pth(tmp_path / "mit.pth", spell(mit_nvlabs(TINY), values))
    depth = write_safetensors(tmp_path / "glpn.safetensors", spell_glpn(values, TINY))
    for source, head in ((bare, 0), (depth, len(glpn(TINY)) - len(segformer_model_only_old(TINY)))):
        result = lw.convert(
            source, tmp_path / f"{source.stem}-out", to="transformers", config=UNSHOWN
        )
        same(load_file(result.path / "model.safetensors"), spell_model_only_old(values, TINY))
        assert len(result.left_out) == head
        loaded_whole(result.path, "SegformerModel")


def test_the_config_says_where_each_value_comes_from(tmp_path: Path) -> None:
    source = write_pth(tmp_path / "mit_b0.pth", spell_nvlabs(neutral(B0), B0))
    result = lw.convert(source, tmp_path / "out", to="transformers")
    config = json.loads((result.path / "config.json").read_text())
    assert config["num_attention_heads"] == list(B0.heads)
    assert config["sr_ratios"] == list(B0.sr_ratios)
    assert config["dtype"] == "float32"
    unshown = {"num_attention_heads": "published MiT-B0", "strides": "published MiT-B0",
               "id2label": "stand-ins", "label2id": "stand-ins"}  # fmt: skip
    shown = ("num_channels", "num_encoder_blocks", "depths", "hidden_sizes", "patch_sizes",
             "sr_ratios", "mlp_ratios", "decoder_hidden_size")  # fmt: skip
    assert result.config_from == unshown | dict.fromkeys(shown, "shapes")
    assert any("the names of its 19 classes are not in the weights" in w for w in result.warnings)
    labels = {str(i): name for i, name in enumerate(CITYSCAPES_LABELS)}
    named = lw.convert(source, tmp_path / "named", to="transformers", config={"id2label": labels})
    assert named.warnings == ()
    assert named.load().config.label2id["bicycle"] == 18


def test_a_value_that_no_shape_shows_is_never_guessed(tmp_path: Path) -> None:
    source = write_pth(tmp_path / "tiny.pth", spell_nvlabs(neutral(TINY), TINY))
    with pytest.raises(
        CheckpointError, match=r"num_attention_heads and strides cannot be known.*--config FILE"
    ):
        lw.convert(source, tmp_path / "out", to="transformers")
    odd = replace(B0, sr_ratios=(8, 4, 4, 1))  # the widths and depths of B0, but another model
    other = write_pth(tmp_path / "odd.pth", spell_nvlabs(neutral(odd), odd))
    with pytest.raises(CheckpointError, match="num_attention_heads and strides cannot be known"):
        lw.convert(other, tmp_path / "out", to="transformers")
    for config, words in (
        (UNSHOWN | {"depths": [9, 9, 9, 9]}, r"depths \[2, 1, 1, 2\] by the shapes"),
        (UNSHOWN | {"num_attention_heads": [3, 2, 3, 4]}, "cannot be shared by 3 heads"),
        (UNSHOWN | {"num_attention_heads": [1, 2, 3]}, "needs 4 positive numbers"),
        (UNSHOWN | {"num_attention_heads": "many"}, "needs 4 positive numbers"),
        (UNSHOWN | {"id2label": {"0": "road"}}, "does not name the numbers 0 to 4"),
    ):
        with pytest.raises(CheckpointError, match=words):
            lw.convert(source, tmp_path / "out", to="transformers", config=config)
    with pytest.raises(UsageError, match="the config given is that of a 'resnet'"):
        lw.convert(source, tmp_path / "out", to="transformers", config={"model_type": "resnet"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["lost", "lost projection", "misshapen", "foreign", "odd kv"])
def test_what_is_no_whole_model_is_refused_by_name(tmp_path: Path, change: str) -> None:
    tensors = spell_nvlabs(neutral(B0), B0)
    if change == "lost":
        del tensors["backbone.block2.1.mlp.dwconv.dwconv.bias"]
    elif change == "lost projection":
        del tensors["backbone.patch_embed3.proj.weight"]
    elif change == "misshapen":
        tensors["backbone.block2.1.mlp.fc2.weight"] = np.ones((64, 3), np.float32)
    elif change == "odd kv":
        tensors["backbone.block2.1.attn.kv.weight"] = np.ones((127, 64), np.float32)
    else:
        tensors["backbone.block4.1.attn.sr.weight"] = np.ones((256, 256, 2, 2), np.float32)
    source = write_pth(tmp_path / "odd.pth", tensors)
    with pytest.raises(CheckpointError, match="leave --to out"):
        lw.convert(source, tmp_path / "out", to="transformers")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd.pth"]


def test_a_model_of_no_known_class_is_refused(tmp_path: Path) -> None:
    source = write_safetensors(
        tmp_path / "a.safetensors", {"a.weight": np.ones((2, 2), np.float32)}
    )
    with pytest.raises(
        CheckpointError, match=r"none of the models.*SegformerModel.*leave --to out"
    ):
        lw.convert(source, tmp_path / "out", to="transformers")


def test_missing_counters_are_added_as_zero_and_said(tmp_path: Path) -> None:
    values = spell_nvlabs(neutral(B0), B0)
    counter = "decode_head.linear_fuse.bn.num_batches_tracked"
    source = write_pth(tmp_path / "old.pth", {k: v for k, v in values.items() if k != counter})
    result = lw.convert(source, tmp_path / "out", to="transformers")
    assert result.added == ("decode_head.batch_norm.num_batches_tracked",)
    assert "added: 1 counters of 0" in str(result)
    assert load_file(result.path / "model.safetensors")[result.added[0]] == 0
    loaded_whole(result.path, "SegformerForSemanticSegmentation")


def test_a_model_of_transformers_keeps_its_config_and_labels(tmp_path: Path) -> None:
    source = write_transformers_folder(tmp_path / "city", neutral(TINY), TINY, dialect="new")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"_name_or_path": "/home/me/secret"}))
    result = lw.convert(source, tmp_path / "out", to="transformers")
    made = json.loads((result.path / "config.json").read_text())
    assert {k: v for k, v in made.items() if k in config} == config
    assert made.keys() <= config.keys()
    assert (result.path / "preprocessor_config.json").is_file()
    loaded_whole(result.path, "SegformerForSemanticSegmentation")


def test_a_converted_model_merges_with_its_origin(tmp_path: Path) -> None:
    start = ancestor(B0, seed=0)
    first = write_pth(tmp_path / "a.pth", spell_nvlabs(finetuned(start, 1), B0))
    second = write_pth(tmp_path / "b.pth", spell_nvlabs(finetuned(start, 2), B0))
    converted = lw.convert(first, tmp_path / "a", to="transformers").path
    one = lw.merge(first, second, output=tmp_path / "one")
    two = lw.merge(converted, second, output=tmp_path / "two")
    again = lw.convert(one.folder, tmp_path / "one-as-transformers", to="transformers")
    same(load_file(two.folder / "model.safetensors"), load_file(again.path / "model.safetensors"))


# the output --------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unasked_and_nothing_foreign_ever(tmp_path: Path) -> None:
    source = write_pth(tmp_path / "a.pth", spell_nvlabs(neutral(B0), B0))
    before = source.read_bytes()
    out, file = tmp_path / "out", tmp_path / "a.safetensors"
    for target in (out, file):
        lw.convert(source, target)
        with pytest.raises(OutputError, match=r"exists already\. Pass --overwrite"):
            lw.convert(source, target)
        lw.convert(source, target, overwrite=True, dtype="float16")
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(
        OutputError, match=r"files that lwmm-hub did not write: thesis.tex"
    ) as caught:
        lw.convert(source, out, overwrite=True)
    assert "-o" not in str(caught.value).split()
    assert (out / "thesis.tex").read_text() == "years of work"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "model.safetensors").write_text("not ours")
    with pytest.raises(OutputError, match="was not written by lwmm-hub"):
        lw.convert(source, foreign, overwrite=True)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    for target in (copy, tmp_path / "." / "copy.safetensors"):
        with pytest.raises(OutputError, match="is the model itself"):
            lw.convert(copy, target, overwrite=True)
    link = tmp_path / "link.safetensors"
    link.symlink_to(source)
    with pytest.raises(OutputError, match="holds one of the models"):
        lw.convert(source, link, overwrite=True)
    assert source.read_bytes() == before
    with pytest.raises(OutputError, match="holds one of the models"):
        lw.convert(source, tmp_path, overwrite=True)


def test_a_result_that_does_not_fit_is_refused_in_the_words_of_convert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_pth(tmp_path / "a.pth", spell_nvlabs(neutral(B0), B0))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(
        OutputError, match=r"^the result needs .* Make room, or choose another folder\.$"
    ):
        lw.convert(source, tmp_path / "out")


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_pth(tmp_path / "a.pth", spell_nvlabs(neutral(B0), B0))
    done = 0

    def stop(count: int) -> None:
        nonlocal done
        done += count
        if done > 1_000_000:
            raise KeyboardInterrupt

    for target in ("out", "a.safetensors", "deep/er/out"):
        with pytest.raises(KeyboardInterrupt):
            lw.convert(source, tmp_path / target, progress=stop)
        assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


# the command -------------------------------------------------------------------------------------


def test_the_command_prints_what_was_done(lwmm: Command, tmp_path: Path) -> None:
    source, _ = daformer(tmp_path, B0)
    done = lwmm("convert", source, "mit", "--to", "transformers")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    count = len(segformer_model_only_old(B0))
    assert lines[0].startswith(f"Wrote {count} tensors as a SegformerModel to mit (")
    assert any(line.startswith("split: 16 fused tensors") for line in lines)
    assert any("not part of a SegformerModel" in line for line in lines)
    assert any(
        line == "config from published MiT-B0: num_attention_heads, strides" for line in lines
    )
    data = lwmm("convert", source, "mit2", "--to", "transformers", "--json").data
    assert data["class"] == "SegformerModel"
    assert data["tensors"] == count
    assert data["left_out"]["decode_head.conv_seg.weight"]
    assert lwmm("convert", source, "mit3", "-q").out.strip() == "mit3"
    assert "sha256\tmodel.safetensors\t" in lwmm("convert", source, "mit4", "--format", "agent").out


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (("a.pth",), 2, "Missing argument 'OUT'"),
    (("a.pth", "out", "--to", "jax"), 2, "'jax' is not one of"),
    (("a.pth", "out", "--dtype", "int4"), 2, "dtype 'int4' is unknown"),
    (("a.pth", "out", "--max-shard-size", "huge"), 2, "is no size"),
    (("a.pth", "out", "--config", "c.json"), 2, "goes with --to transformers"),
    (("a.pth", "out", "--to", "transformers", "--config", "c.json"), 2, "no file 'c.json'"),
    (("a.pth", "o.safetensors", "--to", "transformers"), 2, "is a folder"),
    (("b.pth", "out"), 1, "There is no file or folder 'b.pth'"),
    (("a.pth", "a.pth"), 1, "holds one of the models"),
    (("a.pth", "bad", "--to", "transformers", "--config", "bad.json"), 1, "bad.json is not JSON"),
])  # fmt: skip
def test_wrong_usage_is_refused(
    lwmm: Command, arguments: tuple[str, ...], code: int, words: str
) -> None:
    write_pth("a.pth", {"a": np.ones(3, np.float32)})
    Path("bad.json").write_text("{")
    done = lwmm("convert", *arguments)
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert len(done.err.splitlines()) == 1
    assert sorted(path.name for path in Path().iterdir()) == ["a.pth", "bad.json"]


def test_what_headers_refuse_on_the_hub_is_not_downloaded(hub: TestHub, tmp_path: Path) -> None:
    size = replace(B0, widths=(16, 32, 80, 128), decoder_width=64)  # no published one
    source = write_pth(tmp_path / "net.pth", spell_nvlabs(neutral(size), size))
    hub.create_repo("org/net", {"net.pth": source})
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"num_attention_heads": [1, 2, 5, 8], "strides": [4, 2, 2, 2]}))
    refused = run("convert", "org/net:net.pth", "out", "--to", "transformers", cwd=tmp_path,
                  **hub.environment(tmp_path / "home"))  # fmt: skip
    assert refused.code == 1, refused.out
    assert "num_attention_heads and strides cannot be known" in refused.err
    assert not (tmp_path / "out").exists()
    held = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in held) < source.stat().st_size / 4
    done = run("convert", "org/net:net.pth", "out", "--to", "transformers", "--config", given,
               "--json", cwd=tmp_path, **hub.environment(tmp_path / "home"))  # fmt: skip
    assert done.code == 0, done.err
    assert done.data["source"].startswith("org/net at ")
    loaded_whole(tmp_path / "out", "SegformerForSemanticSegmentation")


@pytest.mark.parametrize("name", ["out.pth", "out.pt", "out.bin", "out.ckpt"])
def test_a_folder_is_not_called_like_a_file_of_another_format(
    lwmm: Command, name: str, tmp_path: Path
) -> None:
    source, _ = daformer(tmp_path, B0)
    done = lwmm("convert", source, name)
    assert done.code == 2
    assert "name a folder, or out.safetensors" in done.err
    assert not Path(name).exists()
