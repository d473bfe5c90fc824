"""Output folders: shards, atomic appearance, recovery, and systems that can do less."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from enumerators import TINY, segformer_nvlabs, spell, write_pth, write_transformers_folder
from oracle import Values, bits, read, relatives, same_bits, save, stored

import lwmm_hub as lw
from lwmm_hub import writing
from lwmm_hub.checkpoint import LocalFile
from lwmm_hub.checkpoint.safetensors import read_safetensors
from lwmm_hub.errors import CheckpointError, OutputError
from lwmm_hub.writing import folder as writing_folder

NAMES = [
    "README.md",
    "config.json",
    "layer_weights.svg",
    "lwmm_manifest.json",
    "lwmm_recipe.yaml",
    "model.safetensors",
    "preprocessor_config.json",
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    one, two = relatives(2, classes=(5, 7))
    return (
        write_transformers_folder(root / "anchor", one, TINY),
        write_transformers_folder(root / "donor", two, TINY),
    )


@pytest.fixture(scope="module")
def reference(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> lw.MergeResult:
    """The merge of the pair on a system that can do everything."""
    return lw.merge(*pair, output=tmp_path_factory.mktemp("reference") / "merged")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------- the folder


def test_the_folder_is_complete_and_nothing_lies_beside_it(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    lw.merge(*pair, output=tmp_path / "merged")
    assert names(tmp_path) == ["merged"]
    assert names(tmp_path / "merged") == NAMES


def test_the_file_is_aligned_and_says_pt_and_nothing_of_time(
    reference: lw.MergeResult, pair: tuple[Path, Path]
) -> None:
    path = reference.folder / "model.safetensors"
    entries, metadata = read_safetensors(LocalFile(path, "merged"))
    assert metadata == {"format": "pt", "merged_with": "lwmm-hub"}
    assert all(e.offset % max(1, e.size // max(e.elements, 1)) == 0 for e in entries.values())
    text = path.read_bytes()[: next(iter(entries.values())).offset]
    assert lw.__name__.encode() not in text
    assert str(pair[0]).encode() not in text
    assert stored(path).keys() == read(pair[0]).keys()


def test_mixed_element_sizes_are_aligned_too(tmp_path: Path) -> None:
    values: Values = {
        "backbone.0.a": np.ones((3, 3), np.float16),
        "backbone.0.b": np.ones(3, np.uint8),
        "backbone.0.c": np.ones((3, 1), np.float64),
        "backbone.0.d": np.ones(1, np.int64),
        "backbone.0.e": np.ones(5, np.float32),
    }
    path = write_pth(tmp_path / "a.pth", values)
    lw.merge(path, path, output=tmp_path / "merged")
    merged = tmp_path / "merged" / "model.safetensors"
    entries, _ = read_safetensors(LocalFile(merged, "merged"))
    assert all(e.offset % (e.size // e.elements) == 0 for e in entries.values())
    assert same_bits(read(tmp_path / "merged"), values)


@pytest.mark.parametrize("dialect", ["old", "new"])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("size", ["5GB", "40KB"])
def test_transformers_loads_every_folder_with_no_key_missing_or_left_over(
    dialect: str, sharded: bool, size: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    import torch
    from transformers import SegformerForSemanticSegmentation

    one = relatives(2, classes=(5, 7))[0]
    anchor = write_transformers_folder(tmp_path / "a", one, TINY, dialect, sharded)  # type: ignore[arg-type]
    result = lw.merge(anchor, pair[1], output=tmp_path / "merged", max_shard_size=size)
    model, found = SegformerForSemanticSegmentation.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not found[what], what
    pixels = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    with torch.no_grad():
        logits = model.eval()(pixels).logits
        ours = result.load().eval()(pixels).logits
    assert logits.shape == (1, 5, 16, 16)
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, ours)


def test_an_incomplete_folder_does_not_load_with_random_weights(
    reference: lw.MergeResult, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(reference.folder, tmp_path / "m")
    tensors = read(tmp_path / "m")
    tensors.pop("decode_head.linear_fuse.weight")
    from safetensors.numpy import save_file

    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    from lwmm_hub.loading import load_model

    with pytest.raises(OutputError, match=r"loads with 1 missing keys.*linear_fuse"):
        load_model(tmp_path / "m")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(OutputError, match="no config"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("bars", [True, False])
def test_what_transformers_says_and_draws_is_as_it_was_after_a_model_is_loaded(
    reference: lw.MergeResult, capfd: pytest.CaptureFixture[str], bars: bool
) -> None:
    from transformers.utils import logging

    from lwmm_hub.loading import load_model

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        # of transformers alone: for the suite, the Hub's client draws none
        logging._tqdm_active = bars  # type: ignore[attr-defined]
        capfd.readouterr()
        load_model(reference.folder)
        said = capfd.readouterr()
        assert (said.out, said.err) == ("", "")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() is bars
    finally:
        logging.set_verbosity(before[0])
        logging._tqdm_active = before[1]  # type: ignore[attr-defined]


# ----------------------------------------------------------------------------------------- shards


def test_shards_hold_the_same_tensors_under_an_index(
    pair: tuple[Path, Path], reference: lw.MergeResult, tmp_path: Path
) -> None:
    result = lw.merge(*pair, output=tmp_path / "merged", max_shard_size="40KB")
    files = sorted(result.files)
    count = len(files)
    assert count > 2
    assert files == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    where = {key: name for name in files for key in stored(tmp_path / "merged" / name)}
    assert index["weight_map"] == where
    assert index["metadata"]["total_size"] == sum(
        v.nbytes for v in read(tmp_path / "merged").values()
    )
    for name in files:
        tensors = [v.nbytes for k, v in read(tmp_path / "merged").items() if where[k] == name]
        assert sum(tensors) <= 40_000 or len(tensors) == 1
    assert same_bits(read(tmp_path / "merged"), read(reference.folder))
    assert "model.safetensors" not in names(tmp_path / "merged")


def test_a_sharded_output_is_a_good_input(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one = lw.merge(*pair, output=tmp_path / "one", max_shard_size="40KB")
    two = lw.merge(*pair, output=tmp_path / "two")
    again = lw.merge(pair[0], one.folder, one.folder, output=tmp_path / "m")
    plain = lw.merge(pair[0], two.folder, two.folder, output=tmp_path / "n")
    assert again.files == plain.files


@pytest.mark.parametrize("role", ["anchor", "donor"])
def test_sharded_parents_merge_as_whole_ones(
    role: str, pair: tuple[Path, Path], reference: lw.MergeResult, tmp_path: Path
) -> None:
    one, two = relatives(2, classes=(5, 7))
    folder = write_transformers_folder(
        tmp_path / "s", one if role == "anchor" else two, TINY, sharded=True
    )
    paths = (folder, pair[1]) if role == "anchor" else (pair[0], folder)
    result = lw.merge(*paths, output=tmp_path / "merged")
    assert same_bits(read(tmp_path / "merged"), read(reference.folder))
    assert list(result.files) == ["model.safetensors"]


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_transformers_folder(tmp_path / "s", relatives(1)[0], TINY, sharded=True)


def edit_index(folder: Path, key: str, name: str | None) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    if name is None:
        index.pop(key)
    else:
        index["weight_map"][key] = name
    path.write_text(json.dumps(index))


def test_a_missing_shard_is_named(sharded: Path, pair: tuple[Path, Path]) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"'model-00002-of-00002\.safetensors', which is"):
        lw.plan(sharded, pair[1])


def test_a_key_that_is_in_no_shard_is_named(sharded: Path, pair: tuple[Path, Path]) -> None:
    edit_index(sharded, "segformer.lost.weight", "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"'segformer\.lost\.weight', which is in none"):
        lw.plan(sharded, pair[1])


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../x", "a\\b"])
def test_an_index_cannot_lead_out_of_the_folder(
    name: str, sharded: Path, pair: tuple[Path, Path]
) -> None:
    edit_index(sharded, "x", name)
    with pytest.raises(CheckpointError, match="outside the model"):
        lw.plan(sharded, pair[1])


def test_an_index_without_a_map_is_none(sharded: Path, pair: tuple[Path, Path]) -> None:
    edit_index(sharded, "weight_map", None)
    with pytest.raises(CheckpointError, match="is not a shard index"):
        lw.plan(sharded, pair[1])


def test_a_key_in_two_shards_is_named(sharded: Path, pair: tuple[Path, Path]) -> None:
    key = "decode_head.classifier.bias"
    first = sharded / "model-00001-of-00002.safetensors"
    from safetensors.numpy import load_file

    save(first, load_file(first) | {key: np.zeros(5, np.float32)})
    with pytest.raises(CheckpointError, match=r"'decode_head\.classifier\.bias' stands in two"):
        lw.plan(sharded, pair[1])


# ---------------------------------------------------------------- systems that can do less


@pytest.mark.parametrize("lacking", ["preadv", "pwrite", "both", "exchange", "fcntl", "all"])
def test_a_system_that_can_do_less_gives_the_same_result(
    lacking: str,
    pair: tuple[Path, Path],
    reference: lw.MergeResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("preadv", "pwrite"):
        if lacking in (name, "both", "all"):
            monkeypatch.delattr(os, name)
    if lacking in ("exchange", "all"):
        monkeypatch.setattr(writing_folder, "_exchange", lambda one, other: False)
    if lacking in ("fcntl", "all"):
        monkeypatch.setitem(sys.modules, "fcntl", None)
    for threads in (1, 4):
        made: set[Path] = set()
        result = lw.merge(
            *pair,
            output=tmp_path / "merged",
            threads=threads,
            overwrite=True,
            progress=lambda _, made=made: made.update(tmp_path.glob(".merged.*")),
        )
        assert len(made) == 1, "one temporary folder"
        assert result.files == reference.files
        assert names(tmp_path) == ["merged"]
        assert names(tmp_path / "merged") == NAMES


def test_a_system_without_locks_clears_leftovers_after_a_day(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    fresh, stale = (tmp_path / f".merged.lwmm-{x * 12}.tmp" for x in "ab")
    for folder in (fresh, stale):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(stale, (two_days_ago, two_days_ago))
    lw.merge(*pair, output=tmp_path / "merged")
    assert names(tmp_path) == [fresh.name, "merged"]


# -------------------------------------------------------------------------------------- overwriting


def test_what_exists_is_not_overwritten_unless_asked(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    lw.merge(*pair, output=tmp_path / "merged")
    before = content(tmp_path / "merged")
    with pytest.raises(OutputError, match=r"exists already\. Pass --overwrite"):
        lw.merge(*pair, output=tmp_path / "merged", gamma=3.0)
    assert content(tmp_path / "merged") == before
    result = lw.merge(*pair, output=tmp_path / "merged", gamma=3.0, overwrite=True)
    assert content(tmp_path / "merged") != before
    assert result.plan.options.gamma == 3
    assert names(tmp_path) == ["merged"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_failed_run_leaves_the_previous_folder(
    exchange: bool, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(writing_folder, "_exchange", lambda one, other: False)
    lw.merge(*pair, output=tmp_path / "merged")
    before = content(tmp_path / "merged")
    bad = read(pair[0])
    bad["segformer.encoder.layer_norm.3.weight"][0] = np.nan
    donor = save(tmp_path / "in" / "bad.safetensors", bad)
    with pytest.raises(lw.LwmmError, match="has NaN"):
        lw.merge(pair[0], donor, output=tmp_path / "merged", overwrite=True)
    assert content(tmp_path / "merged") == before
    assert names(tmp_path) == ["in", "merged"]


def test_a_foreign_folder_is_never_overwritten(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputError):
            lw.merge(*pair, output=tmp_path / "merged", overwrite=overwrite)
    assert content(tmp_path / "merged") == {"thesis.tex": b"years of work"}


def test_a_file_is_never_overwritten(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "merged").write_text("notes")
    with pytest.raises(OutputError, match="is a file"):
        lw.merge(*pair, output=tmp_path / "merged", overwrite=True)
    assert (tmp_path / "merged").read_text() == "notes"


@pytest.mark.parametrize("where", ["itself", "its parent"])
@pytest.mark.parametrize("role", [0, 1])
def test_an_input_is_never_the_output(where: str, role: int, tmp_path: Path) -> None:
    folders = [
        write_transformers_folder(tmp_path / "models" / name / "x", values, TINY)
        for name, values in zip("ab", relatives(2), strict=True)
    ]
    before = content(folders[role])
    output = folders[role] if where == "itself" else folders[role].parent
    with pytest.raises(OutputError, match="holds one of the models"):
        lw.merge(*folders, output=output, overwrite=True)
    with pytest.raises(OutputError, match="holds one of the models"):
        lw.merge(
            *(folder / "model.safetensors" for folder in folders), output=output, overwrite=True
        )
    assert content(folders[role]) == before


def test_a_folder_inside_an_input_leaves_the_input_as_it_is(tmp_path: Path) -> None:
    """The default `./merged` when the anchor is the current folder."""
    one, two = (
        write_transformers_folder(tmp_path / name, values, TINY)
        for name, values in zip("ab", relatives(2), strict=True)
    )
    before = content(one)
    lw.merge(one, two, output=one / "merged")
    shutil.rmtree(one / "merged")
    assert content(one) == before


def test_a_missing_parent_is_made(pair: tuple[Path, Path], tmp_path: Path) -> None:
    lw.merge(*pair, output=tmp_path / "a" / "b" / "merged")
    assert names(tmp_path / "a" / "b") == ["merged"]


# ---------------------------------------------------------------------------------------- recovery


def test_an_old_folder_that_was_set_aside_comes_back(
    reference: lw.MergeResult, tmp_path: Path
) -> None:
    """Killed between the two renames of a system without atomic exchange."""
    aside = tmp_path / ".merged.lwmm-0123456789ab.old"
    shutil.copytree(reference.folder, aside)
    writing.recover(tmp_path / "merged")
    assert names(tmp_path) == ["merged"]
    assert content(tmp_path / "merged") == content(reference.folder)


def test_an_old_folder_whose_successor_is_there_is_cleared(tmp_path: Path) -> None:
    for name in ("merged", ".merged.lwmm-0123456789ab.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    writing.recover(tmp_path / "merged")
    assert names(tmp_path) == ["merged"]
    assert (tmp_path / "merged" / "which").read_text() == "merged"


@pytest.mark.parametrize("name", ["merged", "m[1]", "a*b", "why?", "ü", " "])
def test_leftovers_of_this_name_alone_are_cleared(
    name: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    left = tmp_path / f".{name}.lwmm-0123456789ab.tmp"
    others = [
        tmp_path / ".other.lwmm-0123456789ab.tmp",
        tmp_path / ".m1.lwmm-0123456789ab.tmp",
        tmp_path / ".axb.lwmm-0123456789ab.tmp",
        tmp_path / f".{name}.tmp",
        tmp_path / f"{name}.lwmm-0123456789ab.tmp",
    ]
    for folder in (left, *others):
        folder.mkdir()
        (folder / "x").write_text("x")
    lw.merge(*pair, output=tmp_path / name)
    assert names(tmp_path) == sorted([name, *(folder.name for folder in others)])


def test_a_folder_that_another_run_works_in_is_left_alone(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    with writing.temporary_folder(tmp_path / "merged") as busy:
        (busy / "half").write_text("x")
        lw.merge(*pair, output=tmp_path / "merged")
        assert (busy / "half").exists()
    assert names(tmp_path) == ["merged"]


def test_recovering_where_nothing_is(tmp_path: Path) -> None:
    writing.recover(tmp_path / "no" / "such" / "folder")
    assert names(tmp_path) == []


# -------------------------------------------------------------------------------------- full disks


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"the merge needs 1 MB in .*, and 0 MB are free\. Make"):
        lw.merge(*pair, output=tmp_path / "a" / "merged")
    assert names(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; only root can mount one, where mounts are allowed."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"mount is not allowed here: {made.stderr.decode().strip()}")
    yield place
    subprocess.run([umount, place], check=True)


def big(seed: int) -> Values:
    random = np.random.default_rng(0)
    shared = random.standard_normal((300, 300), np.float32)
    own = np.random.default_rng([1, seed]).standard_normal((300, 300), np.float32)
    return {"backbone.0.weight": shared, "backbone.1.weight": shared + np.float32(0.1) * own}


@pytest.mark.parametrize("exists", [False, True])
def test_a_disk_that_becomes_full_leaves_the_previous_state(
    exists: bool, tiny_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of free space is passed by another process that fills the disk meanwhile."""
    parents = [save(tmp_path / f"{i}.safetensors", big(i)) for i in range(2)]
    if exists:
        (tiny_disk / "merged").mkdir()
        (tiny_disk / "merged" / "lwmm_manifest.json").write_text("{}")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 40))
    with pytest.raises(OutputError, match="became full") as caught:
        lw.merge(*parents, output=tiny_disk / "merged", overwrite=exists)
    assert "\n" not in str(caught.value)
    assert names(tiny_disk) == (["merged"] if exists else [])
    if exists:
        assert content(tiny_disk / "merged") == {"lwmm_manifest.json": b"{}"}


def test_a_limit_on_file_sizes_is_an_error_of_ours(tmp_path: Path) -> None:
    parents = [save(tmp_path / f"{i}.safetensors", big(i)) for i in range(2)]
    script = (
        "import resource, sys, lwmm_hub as lw\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    lw.merge(*sys.argv[1:3], output=sys.argv[3])\n"
        "except lw.LwmmError as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, parents), str(tmp_path / "out" / "merged")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("OutputError ")
    assert len(done.stdout.splitlines()) == 1
    assert names(tmp_path) == ["0.safetensors", "1.safetensors"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


# ----------------------------------------------------------------------------------------- anchors


def test_a_pth_anchor_gives_safetensors_in_the_students_keys(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    tensors = spell(segformer_nvlabs(TINY), relatives(1)[0])
    copies = {f"model.{k}": v for k, v in tensors.items()}
    copies |= {f"ema_model.{k}": np.zeros_like(v) for k, v in tensors.items()}
    anchor = write_pth(tmp_path / "run.pth", copies, "state_dict")
    plain = write_pth(tmp_path / "plain.pth", tensors, prefix="module.")
    one = lw.merge(anchor, pair[1], output=tmp_path / "one")
    two = lw.merge(plain, pair[1], output=tmp_path / "two")
    assert same_bits(read(one.folder), read(two.folder))
    assert set(read(one.folder)) == set(tensors)
    assert bits(read(one.folder)["decode_head.conv_seg.weight"]) == bits(
        tensors["decode_head.conv_seg.weight"]
    )
    assert "config.json" not in names(one.folder)
