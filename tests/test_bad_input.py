"""What bad input gets: one line on stderr that says what, which and what to do now; nothing else.

Every row of the tables has three pieces of its message: what is wrong, which file or option, and
what to do now.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pickle_builder as by_hand
import pytest
import yaml
from enumerators import (
    B0,
    B1,
    SegformerSize,
    cast,
    segformer_transformers_old,
    transformers_config,
    write_safetensors,
)
from safetensors.numpy import load_file
from stories import (
    PROGRAM,
    Command,
    Finished,
    Models,
    assert_complete,
    everything_below,
    leftovers,
    quiet_environment,
    run,
)

import lwmm_hub as lw

Words = tuple[str, ...]


def assert_refused(found: Finished, code: int, *words: str) -> None:
    """One line on stderr with these words; no traceback, and nothing on stdout."""
    assert found.code == code, found.err
    assert found.out == ""
    assert found.err.startswith("lwmm-hub: ")
    assert found.err.count("\n") == 1
    assert found.err.endswith("\n")
    assert "Traceback" not in found.err
    assert "internal error" not in found.err
    for word in words:
        assert word in found.err


def refused_everywhere(
    lwmm: Command, here: Path, code: int, words: Words, *arguments: str | Path
) -> None:
    """`merge` refuses in every format, and leaves the folder as it was."""
    before = everything_below(here)
    for more in ((), ("--json",), ("--format", "agent"), ("-q",)):
        assert_refused(lwmm("merge", *arguments, *more), code, *words)
    assert everything_below(here) == before


# ---------------------------------------------------------------------- models that cannot be read


def whole(header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file, byte by byte."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def described(start: int, stop: int, dtype: str = "F32", shape: Any = None) -> dict[str, Any]:
    shape = [(stop - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


class Payload:
    """A pickle that would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def pickled_payload(folder: Path) -> bytes:
    return pickle.dumps({"a.weight": Payload(folder / "executed")}, protocol=2)


def an_index(names: Mapping[str, Any]) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": dict(names)}).encode()


TWO = {"a": described(0, 8), "b": described(8, 16)}
CONFIG = b'{"model_type": "segformer"}'
SHARD = whole({"a": described(0, 8)}, bytes(8))
AGAIN = "Download it again"
Files = Mapping[str, bytes] | Callable[[Path], Mapping[str, bytes]]

# name -> files of the model's folder, and words of the message
UNREADABLE: dict[str, tuple[Files, Words]] = {
    "nothing at all": ({}, ("bad has no weights", "Name a model with weights")),
    "only a config": (
        {"config.json": CONFIG},
        ("bad has no weights", ".safetensors", "Name a model with weights"),
    ),
    "LoRA adapter": (
        {"adapter_config.json": b"{}", "adapter_model.safetensors": SHARD},
        ("bad is a LoRA adapter", "merge it into its base model first"),
    ),
    "LoRA adapter in a pickle": (
        {"adapter_config.json": b"{}", "adapter_model.bin": b"PK"},
        ("bad is a LoRA adapter", "merge it into its base model first"),
    ),
    "quantised, as its config says": (
        {
            "config.json": b'{"quantization_config": {"quant_method": "bitsandbytes"}}',
            "model.safetensors": SHARD,
        },
        ("bad is quantised (bitsandbytes)", "Name the model it was made from"),
    ),
    "quantised, as its keys say": (
        {"model.safetensors": whole({"layer.qweight": described(0, 8)}, bytes(8))},
        ("bad is quantised", "Name the model it was made from"),
    ),
    "several weight files": (
        {"one.pth": b"1", "two.pth": b"2"},
        ("bad has several weight files: 'one.pth', 'two.pth'", "Name one"),
    ),
    "empty safetensors": (
        {"model.safetensors": b""},
        ("bad: model.safetensors", "0 bytes", AGAIN),
    ),
    "random safetensors": (
        {"model.safetensors": np.random.default_rng(1).bytes(4096)},
        ("bad: model.safetensors", "header claims", AGAIN),
    ),
    "truncated safetensors": (
        {"model.safetensors": whole(TWO, bytes(12))},
        ("bad: model.safetensors", "truncated", AGAIN),
    ),
    "bytes after the last tensor": (
        {"model.safetensors": whole(TWO, bytes(20))},
        ("bad: model.safetensors", "the file at 151", AGAIN),
    ),
    "header longer than the file": (
        {"model.safetensors": whole(TWO, bytes(16), length=5000)},
        ("bad: model.safetensors", "header claims 5000 bytes", AGAIN),
    ),
    "header of 100 GB": (
        {"model.safetensors": whole(TWO, bytes(16), length=100_000_000_000)},
        ("bad: model.safetensors", "header claims 100000000000 bytes", AGAIN),
    ),
    "header of 2^64 bytes": (
        {"model.safetensors": whole(TWO, bytes(16), length=2**64 - 1)},
        ("bad: model.safetensors", "header claims", AGAIN),
    ),
    "header that is not JSON": (
        {"model.safetensors": whole(b'{"a": ', bytes(8))},
        ("bad: model.safetensors", "header is not JSON", AGAIN),
    ),
    "header that is a list": (
        {"model.safetensors": whole(b"[1]")},
        ("bad: model.safetensors", "header is not a table", AGAIN),
    ),
    "header nested a million deep": (
        {"model.safetensors": whole(b"[" * 1_000_000)},
        ("bad: model.safetensors", "header is not JSON", AGAIN),
    ),
    "overlapping offsets": (
        {"model.safetensors": whole({"a": described(0, 8), "b": described(4, 12)}, bytes(12))},
        ("bad: model.safetensors", "'b' overlaps", AGAIN),
    ),
    "a gap between offsets": (
        {"model.safetensors": whole({"a": described(0, 8), "b": described(12, 20)}, bytes(20))},
        ("bad: model.safetensors", "'b' leaves a gap", AGAIN),
    ),
    "offsets the wrong way round": (
        {"model.safetensors": whole({"a": described(8, 0, shape=[2])}, bytes(8))},
        ("bad: model.safetensors", "'a' has the impossible offsets [8, 0]", AGAIN),
    ),
    "offsets that do not fit the shape": (
        {"model.safetensors": whole({"a": described(0, 8, shape=[3])}, bytes(8))},
        ("bad: model.safetensors", "'a'", AGAIN),
    ),
    "a shape of negative size": (
        {"model.safetensors": whole({"a": described(0, 8, shape=[-2])}, bytes(8))},
        ("bad: model.safetensors", "'a' has the impossible shape [-2]", AGAIN),
    ),
    "a shape of absurd size": (
        {"model.safetensors": whole({"a": described(0, 8, shape=[2**62, 2**62])}, bytes(8))},
        ("bad: model.safetensors", "'a'", AGAIN),
    ),
    "a key twice": (
        {
            "model.safetensors": whole(
                b'{"a": %b, "a": %b}' % ((json.dumps(described(0, 8)).encode(),) * 2), bytes(8)
            )
        },
        ("bad: model.safetensors", "'a' stands in it twice", AGAIN),
    ),
    "unknown dtype": (
        {"model.safetensors": whole({"a": described(0, 8, "F33")}, bytes(8))},
        ("bad: model.safetensors", "'a' has the unknown dtype 'F33'", AGAIN),
    ),
    "no tensors": (
        {"model.safetensors": whole({})},
        ("bad holds no tensors", "Name a file with weights"),
    ),
    "shard that is missing": (
        {
            "model.safetensors.index.json": an_index({"a": "model-1.safetensors", "b": "x.bin"}),
            "model-1.safetensors": SHARD,
        },
        ("bad: model.safetensors.index.json names 'x.bin'", "missing", "Download the model again"),
    ),
    "tensor that is missing from the shards": (
        {
            "model.safetensors.index.json": an_index(
                {"a": "model-1.safetensors", "b": "model-1.safetensors"}
            ),
            "model-1.safetensors": SHARD,
        },
        ("bad: model.safetensors.index.json lists 'b'", "in none of its files", "Download"),
    ),
    "tensor in two shards": (
        {
            "model.safetensors.index.json": an_index(
                {"a": "model-1.safetensors", "b": "model-2.safetensors"}
            ),
            "model-1.safetensors": SHARD,
            "model-2.safetensors": SHARD,
        },
        ("bad", "'a' stands in two of its files", AGAIN),
    ),
    "index that leaves the folder": (
        {"model.safetensors.index.json": an_index({"a": "../../etc/passwd"})},
        ("bad: model.safetensors.index.json names the file '../../etc/passwd'", "outside", "trust"),
    ),
    "index with an absolute path": (
        {"model.safetensors.index.json": an_index({"a": "/etc/passwd"})},
        ("bad: model.safetensors.index.json names the file '/etc/passwd'", "outside the model"),
    ),
    "index with a number for a file": (
        {"model.safetensors.index.json": an_index({"a": 7})},
        ("bad: model.safetensors.index.json names the file 7", "outside the model"),
    ),
    "index that is not JSON": (
        {"model.safetensors.index.json": b"{"},
        ("bad: model.safetensors.index.json is not JSON", AGAIN),
    ),
    "index without a map": (
        {"model.safetensors.index.json": b"{}"},
        ("bad: model.safetensors.index.json is not a shard index", AGAIN),
    ),
    "config that is not JSON": (
        {"config.json": b"{'model_type': 1}", "model.safetensors": SHARD},
        ("bad: config.json is not JSON", AGAIN),
    ),
    "config that is a list": (
        {"config.json": b"[1, 2]", "model.safetensors": SHARD},
        ("bad: config.json is not a table", AGAIN),
    ),
    "config nested a million deep": (
        {"config.json": b"[" * 1_000_000, "model.safetensors": SHARD},
        ("bad: config.json is not JSON", AGAIN),
    ),
    "config that is not text": (
        {"config.json": b"\xff\xfe\x00\x80", "model.safetensors": SHARD},
        ("bad: config.json is not JSON", AGAIN),
    ),
    "empty pickle": (
        {"latest.pth": b""},
        ("bad: latest.pth is empty", AGAIN),
    ),
    "random pickle": (
        {"latest.pth": b"\x01" + np.random.default_rng(2).bytes(4096)},
        ("bad: latest.pth is not a PyTorch file", "torch.save"),
    ),
    "Git LFS pointer": (
        {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"},
        ("bad: model.safetensors is a Git LFS pointer", "git lfs pull"),
    ),
    "web page": (
        {"latest.pth": b"<!DOCTYPE html><html>Sign in</html>"},
        ("bad: latest.pth is a web page", "download the file itself"),
    ),
    "truncated archive": (
        {"latest.pth": by_hand.archive(by_hand.pickled(by_hand.dictionary(a=b"N")))[:-40]},
        ("bad: latest.pth is damaged or truncated", AGAIN),
    ),
    "archive of another kind": (
        {"latest.pth": by_hand.archive(b"", {"run/a": b"1"}).replace(b"data.pkl", b"date.pkl")},
        ("bad: latest.pth is a zip archive, but not one of torch.save", "Pass a file"),
    ),
    "malicious pickle in an archive": (
        lambda folder: {"latest.pth": by_hand.archive(pickled_payload(folder))},
        ("bad: latest.pth", "mkdir", "nothing was executed"),
    ),
    "malicious pickle": (
        lambda folder: {"latest.pth": pickled_payload(folder)},
        ("bad: latest.pth", "nothing was executed"),
    ),
    "malicious pickle under the Hub's name": (
        lambda folder: {"pytorch_model.bin": by_hand.archive(pickled_payload(folder))},
        ("bad: pytorch_model.bin", "nothing was executed"),
    ),
    "malicious pickle called safetensors": (
        lambda folder: {"model.safetensors": pickled_payload(folder)},
        ("bad: model.safetensors", AGAIN),
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", UNREADABLE)
def test_a_model_that_cannot_be_read_is_refused(
    row: str, lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    files, words = UNREADABLE[row]
    bad = tmp_path / "here" / "bad"
    bad.mkdir()
    for name, content in (files(tmp_path) if callable(files) else files).items():
        (bad / name).write_bytes(content)

    refused_everywhere(lwmm, tmp_path, 1, words, bad, tiny.donor)
    refused_everywhere(lwmm, tmp_path, 1, words, tiny.anchor, bad)
    assert_refused(lwmm("plan", tiny.anchor, bad, "--json"), 1, *words)
    assert_refused(lwmm("drift", tiny.anchor, bad, "--json"), 1, *words)
    assert not (tmp_path / "executed").exists()


def test_a_folder_where_a_file_should_be_is_refused(
    lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    (tmp_path / "bad" / "model.safetensors").mkdir(parents=True)
    words = ("bad has no weights", "Name a model with weights")
    refused_everywhere(lwmm, tmp_path, 1, words, tiny.anchor, tmp_path / "bad")


def test_a_config_that_is_a_folder_is_none(lwmm: Command, tiny: Models, tmp_path: Path) -> None:
    shutil.copytree(tiny.donor, tmp_path / "odd")
    (tmp_path / "odd" / "config.json").unlink()
    (tmp_path / "odd" / "config.json").mkdir()
    assert lwmm("merge", tiny.anchor, tmp_path / "odd").code == 0


@pytest.fixture
def as_nobody(tiny: Models) -> Iterator[tuple[Path, Callable[..., Finished]]]:
    """A folder with two models, and the program as a user who may not read everything."""
    before: list[str] = []
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root may read everything")
        before = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    with tempfile.TemporaryDirectory(prefix="lwmm-test-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        for model in (tiny.anchor, tiny.donor):
            shutil.copytree(model, folder / model.name)
        for path in folder.rglob("*"):
            path.chmod(0o755)

        def call(*arguments: str) -> Finished:
            done = subprocess.run(
                [*before, PROGRAM, *arguments],
                cwd=folder,
                env=quiet_environment(HOME=name),
                capture_output=True,
                text=True,
                check=False,
            )
            return Finished(done.returncode, done.stdout, done.stderr)

        if call("--version").code:
            pytest.skip("this machine lets nobody else run the program")
        yield folder, call


@pytest.mark.parametrize(
    ("locked", "words"),
    [
        ("rain/model.safetensors", ("rain: cannot read model.safetensors: Permission denied",)),
        ("rain", ("rain: cannot read", "Permission denied")),
        ("city/config.json", ("city: cannot read config.json: Permission denied",)),
        ("city/preprocessor_config.json", ("city: cannot read preprocessor_config.json",)),
        ("city/README.md", ("city: cannot read README.md: Permission denied",)),
        ("city/LICENSE", ("city: cannot read LICENSE: Permission denied",)),
        (".", ("cannot write to .: Permission denied", "Choose another folder with -o")),
    ],
)
def test_what_may_not_be_read_or_written_is_named(
    locked: str, words: Words, as_nobody: tuple[Path, Callable[..., Finished]]
) -> None:
    folder, lwmm = as_nobody
    (folder / "city/README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "city/LICENSE").write_text("MIT License")
    assert lwmm("merge", "city", "rain", "-o", "first").code == 0
    (folder / locked).chmod(0o555 if locked == "." else 0)
    before = everything_below(folder)
    for more in ([], ["--json"]):
        assert_refused(lwmm("merge", "city", "rain", "-o", "out", *more), 1, *words)
    assert everything_below(folder) == before
    (folder / locked).chmod(0o777)


@pytest.mark.parametrize(
    ("command", "locked", "mode", "words"),
    [
        ("merge city rain --overwrite -o", ".", 0o555, ("first is read-only", "with -o")),
        ("merge city rain --overwrite -o", ".", 0, ("first cannot be read", "with -o")),
        ("card", "README.md", 0o444, ("'first/README.md': Permission denied", "permissions")),
        ("verify", "model.safetensors", 0, ("'first/model.safetensors': Permission denied",)),
    ],
)
def test_a_merge_that_may_not_be_read_or_replaced_is_named(
    command: str, locked: str, mode: int, words: Words,
    as_nobody: tuple[Path, Callable[..., Finished]],
) -> None:  # fmt: skip
    folder, lwmm = as_nobody
    assert lwmm("merge", "city", "rain", "-o", "first").code == 0
    before = everything_below(folder)
    (folder / "first" / locked).chmod(mode)
    assert_refused(lwmm(*command.split(), "first"), 1, *words)
    (folder / "first" / locked).chmod(0o777)
    assert everything_below(folder) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("./nowhere", ("There is no file or folder './nowhere'", "Write 'org/name'")),
        ("nowhere.pth", ("There is no file or folder 'nowhere.pth'", "Write 'org/name'")),
        ("nowhere", ("'nowhere' is neither a local path nor a Hub repository", "Write 'org/name'")),
        ("", ("'' names no model", "Write 'org/name'")),
        ("x" * 300, ("x' is neither a local path nor", "Write 'org/name'")),
        ("a/b/c", ("'a/b/c' is neither", "Write 'org/name'")),
        ("org/na--me", ("'org/na--me' is not a valid repository id", "Write 'org/name'")),
        ("org/name:../../x.pth", ("'../../x.pth' is not a path inside", "Write 'org/name'")),
        ("{donor}?weights=best", ("unknown weights 'best'", "student, ema, imagenet")),
        ("{donor}?weights=ema", ("rain holds one copy", "Leave '?weights=' out")),
        ("{donor}?size=3", ("unknown option 'size'", "'?weights='")),
    ],
)
def test_a_text_that_names_no_model_is_refused(
    text: str, words: Words, lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    refused_everywhere(lwmm, tmp_path, 1, words, tiny.anchor, text.format(donor=tiny.donor))


# ---------------------------------------------------------------------- models without a class


def renamed_keys(folder: Path, source: Path, config: Mapping[str, Any]) -> Path:
    """The weights of a model in names that no table knows."""
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    words = {"segformer": "trunk", "patch_embeddings": "patches", "linear_c": "lines"}
    own = {}
    for key, value in tensors.items():
        names = [words.get(name, name) for name in key.split(".")]
        own[".".join(["net", *names])] = value
    write_safetensors(folder / "model.safetensors", own)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "architectures", [["NoSuchModelForAnything"], ["os.system"], [], "SegFormer", [7], None]
)
def test_a_class_that_does_not_exist_leaves_the_order_to_the_names(
    architectures: Any, lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    config = {"architectures": architectures, "model_type": "no_such_model"}
    anchor = renamed_keys(tmp_path / "anchor", tiny.anchor, config)
    donor = renamed_keys(tmp_path / "donor", tiny.donor, config)
    found = lwmm("plan", anchor, donor, "--json")
    assert found.code == 0, found.err
    assert "names" in found.data["order_source"]
    merged = lwmm("merge", anchor, donor)
    assert merged.code == 0, merged.err


def test_a_class_that_does_not_exist_does_not_matter_to_a_family_with_a_table(
    lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    shutil.copytree(tiny.anchor, tmp_path / "anchor")
    config = json.loads((tiny.anchor / "config.json").read_text())
    config["architectures"] = ["NoSuchModel"]
    (tmp_path / "anchor" / "config.json").write_text(json.dumps(config))
    assert lwmm("merge", tmp_path / "anchor", tiny.donor).code == 0


@pytest.mark.parametrize("classes", [10**400, -(10**400), True, 1.5, "many"])
def test_an_impossible_number_of_classes_does_not_matter(
    classes: Any, lwmm: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    values = {f"backbone.{i}.weight": np.random.default_rng(i).normal(size=(8, 8)) for i in (1, 2)}
    write_safetensors(folder / "model.safetensors", cast(values, "float32"))
    (folder / "config.json").write_text(json.dumps({"num_labels": classes}))
    found = lwmm("merge", folder, folder)
    assert found.code == 0, found.err
    assert_complete(Path("merged"))


def test_a_tensor_called_as_the_metadata_of_safetensors_is_refused(
    lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    import torch

    bad = tmp_path / "bad.pth"
    torch.save({"module.__metadata__": torch.ones(4), "module.a": torch.ones(4)}, bad)
    words = ("bad has a tensor called '__metadata__'", "Rename it")
    refused_everywhere(lwmm, tmp_path, 1, words, bad, tiny.donor)
    refused_everywhere(lwmm, tmp_path, 1, words, tiny.anchor, bad)


def test_a_few_lines_of_a_card_cannot_describe_gigabytes(lwmm: Command, tiny: Models) -> None:
    shutil.copytree(tiny.anchor, "anchor")
    merges = ["a0: &a0 {" + ", ".join(f"k{i}: 1" for i in range(10)) + "}"]
    lists = ["b0: &b0 [1]"]
    for i in range(1, 9):
        merges.append(f"a{i}: &a{i} {{<<: [" + ", ".join([f"*a{i - 1}"] * 9) + "]}")
        lists.append(f"b{i}: &b{i} [" + ", ".join([f"*b{i - 1}"] * 9) + "]")
    for lines in (merges, lists, ["<<: {license: mit}"]):
        text = "\n".join(["license: mit", *lines])
        Path("anchor/README.md").write_text(f"---\n{text}\n---\n# A model\n")
        started = time.monotonic()
        found = lwmm("plan", "anchor", tiny.donor, "--json")
        assert time.monotonic() - started < 5
        assert found.data["models"][0]["license"] is None


@pytest.mark.parametrize(
    "broken",
    [
        "!!bool x",
        "!!timestamp x",
        '!!int ""',
        '!!float ""',
        "!!str [a]",
        "1:" * 200_000 + "1",
        "1:" * 500 + "1.5",
        "9" * 400_000,
        "[" * 100_000,
        "[" * 40 + "]" * 40,
        "!!python/object/apply:os.mkdir [executed]",
    ],
    ids=lambda text: text[:24],
)
def test_a_card_neither_crashes_nor_stalls_a_plan(
    broken: str, tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some were internal errors, others took 19 s of 400 kB."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.anchor, "anchor")
    for text in (f"license: {broken}\n", f"license: mit\ntags: [a, {broken}, b]\n"):
        Path("anchor/README.md").write_text(f"---\n{text}---\n# A model\n")
        started = time.process_time()
        facts = lw.resolve("anchor").facts
        assert time.process_time() - started < 5
        assert facts.license in {None, "mit"}
        assert all(name in text for name in facts.datasets)
    assert not Path("executed").exists()


def test_a_card_with_other_types_keeps_its_texts(
    tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.anchor, "anchor")
    text = "license: mit\ndatasets: [a, 1, 2020-01-01, null, b]\ndate: 2020-01-01\n"
    text += "1: 2\nx: {y: .nan}\n"
    Path("anchor/README.md").write_text(f"---\n{text}pipeline_tag: true\n---\n")
    facts = lw.resolve("anchor").facts
    assert (facts.license, facts.datasets, facts.pipeline_tag) == ("mit", ("a", "b"), None)
    for several, license in (
        ("[mit, mit]", "mit"),
        ("[mit, cc-by-nc-4.0]", "mit and cc-by-nc-4.0"),
        (f"{'x' * 97}", "other"),
        (f"[{', '.join('abcdefghijklmnopq')}]", "other"),
    ):
        Path("anchor/README.md").write_text(f"---\nlicense: {several}\n---\n")
        assert lw.resolve("anchor").facts.license == license


# ---------------------------------------------------------------------- values


def changed(
    source: Path, folder: Path, change: Callable[[dict[str, np.ndarray]], None], dtype: str = ""
) -> Path:
    """A copy of a model with other values."""
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    write_safetensors(folder / "model.safetensors", cast(tensors, dtype) if dtype else tensors)
    if dtype:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    return folder


FIRST = "segformer.encoder.patch_embeddings.0.proj.bias"
KEPT = "decode_head.classifier.weight"


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (-np.inf, "infinite values")])
@pytest.mark.parametrize("place", ["anchor", "donor"])
def test_nan_and_infinity_are_named(
    place: str, value: float, what: str, lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[FIRST][3] = value

    source = tiny.anchor if place == "anchor" else tiny.donor
    bad = changed(source, tmp_path / "bad", spoil)
    models = [bad, tiny.donor] if place == "anchor" else [tiny.anchor, bad]
    words = (f"bad has {what} in {FIRST}", "Use a sound copy", "--allow-nonfinite")
    refused_everywhere(lwmm, tmp_path, 1, words, *models)

    found = lwmm("merge", *models, "--allow-nonfinite", "--json")
    assert found.code == 0, found.err
    assert "NaN and infinite values were not looked for" in " ".join(found.data["warnings"])
    merged = load_file(tmp_path / "here" / "merged" / "model.safetensors")
    assert not np.isfinite(merged[FIRST][3])
    assert np.isfinite(merged[FIRST][4:]).all()


def test_nan_in_a_tensor_without_weight_does_not_matter(
    lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[KEPT][:] = np.nan

    bad = changed(tiny.donor, tmp_path / "bad", spoil)
    assert lwmm("merge", tiny.anchor, bad).code == 0


def test_dtypes_that_differ_are_merged_with_a_warning(
    lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    half = changed(tiny.donor, tmp_path / "half", lambda _: None, "float16")
    found = lwmm("merge", tiny.anchor, half)
    assert found.code == 0
    assert found.err.startswith("warning: half has float16 tensors where the anchor has float32")
    assert found.err.count("\n") == 1
    data = lwmm("merge", tiny.anchor, half, "--overwrite", "--json")
    assert data.err == ""
    assert "half has float16 tensors" in data.data["warnings"][0]
    merged = load_file(tmp_path / "here" / "merged" / "model.safetensors")
    assert merged[FIRST].dtype == np.float32


def test_a_value_too_large_for_float16_is_refused(
    lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    def grow(tensors: dict[str, np.ndarray]) -> None:
        tensors[FIRST][2] = 1e6

    anchor = changed(tiny.anchor, tmp_path / "half", lambda _: None, "float16")
    donor = changed(tiny.donor, tmp_path / "large", grow)
    words = (f"{FIRST} has a merged value that is too large for float16", "--dtype float32")
    refused_everywhere(lwmm, tmp_path, 1, words, anchor, donor)
    assert lwmm("merge", anchor, donor, "--dtype", "bfloat16").code == 0


def test_the_same_model_twice_is_merged_with_a_warning(lwmm: Command, tiny: Models) -> None:
    found = lwmm("merge", tiny.anchor, tiny.anchor)
    assert found.code == 0
    assert "warning: city is named twice (models 1 and 2)" in found.err
    assert Path("merged/model.safetensors").read_bytes() != b""
    merged = load_file("merged/model.safetensors")
    for key, value in load_file(tiny.anchor / "model.safetensors").items():
        np.testing.assert_array_equal(merged[key], value)


# ---------------------------------------------------------------------- models that do not fit


def only_headers(folder: Path, size: SegformerSize) -> Path:
    """A model whose file is one hole: refused before its weights are read."""
    from lwmm_hub.checkpoint.safetensors import write_header

    folder.mkdir()
    entries = segformer_transformers_old(size)
    head = write_header([(e.key, e.dtype, e.shape) for e in entries], {"format": "pt"})
    total = sum(int(np.prod(e.shape)) * (8 if e.dtype == "I64" else 4) for e in entries)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + total)
    (folder / "config.json").write_text(json.dumps(transformers_config(size)))
    return folder


def test_models_without_a_shared_backbone_are_refused(lwmm: Command, tmp_path: Path) -> None:
    b0, b1 = only_headers(tmp_path / "b0", B0), only_headers(tmp_path / "b1", B1)
    words = ("b0", "b1", "backbone")
    refused_everywhere(lwmm, tmp_path, 4, words, b0, b1)
    assert_refused(lwmm("plan", b0, b1, "--json"), 4, *words)


def test_unrelated_models_are_refused(lwmm: Command, tiny: Models, tmp_path: Path) -> None:
    words = ("city and stranger are unrelated", "mean cosine", "--allow-unrelated")
    refused_everywhere(lwmm, tmp_path, 4, words, tiny.anchor, tiny.stranger)
    assert_refused(lwmm("plan", tiny.anchor, tiny.stranger, "--check-weights", "--json"), 4, *words)
    assert lwmm("plan", tiny.anchor, tiny.stranger).code == 0
    found = lwmm("merge", tiny.anchor, tiny.stranger, "--allow-unrelated")
    assert found.code == 0
    assert "warning: stranger is unrelated to the anchor" in found.err


def test_models_that_share_nothing_are_refused(lwmm: Command, tiny: Models, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_safetensors(tmp_path / "other" / "model.safetensors", {"x.y": np.ones((3, 3), "f4")})
    refused_everywhere(lwmm, tmp_path, 4, ("city", "other"), tiny.anchor, tmp_path / "other")


# ---------------------------------------------------------------------- the output


def test_an_output_that_exists_is_left_alone(lwmm: Command, tiny: Models, tmp_path: Path) -> None:
    assert lwmm("merge", tiny.anchor, tiny.donor).code == 0
    words = ("merged exists already", "--overwrite", "-o")
    refused_everywhere(lwmm, tmp_path, 1, words, tiny.anchor, tiny.donor)
    assert lwmm("merge", tiny.anchor, tiny.donor, "--overwrite").code == 0


def test_overwrite_takes_nothing_but_a_merge(lwmm: Command, tiny: Models, tmp_path: Path) -> None:
    thesis = tmp_path / "here" / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    words = ("thesis was not written by lwmm-hub", "Choose another folder with -o")
    models = (tiny.anchor, tiny.donor, "--overwrite", "-o")
    refused_everywhere(lwmm, tmp_path, 1, words, *models, "thesis")

    file = thesis / "chapter.tex"
    words = ("chapter.tex is a file", "choose another folder with -o")
    refused_everywhere(lwmm, tmp_path, 1, words, *models, file)
    refused_everywhere(lwmm, tmp_path, 1, ("chapter.tex", "-o"), *models, file / "below")


def test_an_output_that_holds_a_model_is_refused(lwmm: Command, tiny: Models) -> None:
    for folder in (tiny.anchor, tiny.donor, tiny.donor.parent):
        found = lwmm("merge", tiny.anchor, tiny.donor, "--overwrite", "-o", folder)
        assert_refused(found, 1, f"{folder} holds one of the models", "with -o")


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_an_empty_folder_is_a_fine_output(
    more: Words, lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    Path("merged").mkdir()
    assert lwmm("merge", tiny.anchor, tiny.donor, *more).code == 0
    assert_complete(Path("merged"))
    assert leftovers(tmp_path / "here") == []


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (".", (". has no name of its own", "name a new folder")),
        ("loop", ("cannot write to", "loop", "Choose another folder")),
        ("x" * 300, ("cannot write to xxx", "File name too long", "Choose another folder")),
    ],
)
def test_an_output_that_is_no_folder_is_refused(
    output: str, words: Words, lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    assert lwmm("merge", tiny.anchor, tiny.donor).code == 0
    Path("loop").symlink_to("loop")
    models = (tiny.anchor, tiny.donor)
    refused_everywhere(lwmm, tmp_path, 1, words, *models, "--overwrite", "-o", output)


def test_what_is_no_folder_is_no_leftover(lwmm: Command, tiny: Models, tmp_path: Path) -> None:
    """A pipe of that name was waited for, and a link took the place of the output."""
    here = tmp_path / "here"
    (here / "precious").mkdir(parents=True)
    (here / "precious" / "file").write_text("mine")
    os.mkfifo(here / ".out.lwmm-0.tmp")
    for name in (".out.lwmm-1.tmp", ".out.lwmm-2.old"):
        (here / name).symlink_to("precious")
    assert lwmm("merge", tiny.anchor, tiny.donor, "-o", "out").code == 0
    assert_complete(here / "out")
    (here / "out" / "LICENSE").mkdir()
    done = lwmm("merge", tiny.anchor, tiny.donor, "-o", "out", "--overwrite")
    assert_refused(done, 1, "files that lwmm-hub did not write: LICENSE")
    assert (here / "precious" / "file").read_text() == "mine"
    assert not (here / "out").is_symlink()


def test_a_link_stays_a_link_to_a_folder_that_is_replaced(lwmm: Command, tiny: Models) -> None:
    assert lwmm("merge", tiny.anchor, tiny.donor, "-o", "disk/merged").code == 0
    Path("link").symlink_to("disk/merged")
    before = assert_complete(Path("link"))
    assert lwmm("merge", tiny.anchor, tiny.third, "-o", "link").code == 1
    assert assert_complete(Path("link")) == before
    assert lwmm("merge", tiny.anchor, tiny.third, "-o", "link", "--overwrite").code == 0
    assert Path("link").is_symlink()
    assert assert_complete(Path("disk/merged")) != before
    assert leftovers(Path()) == leftovers(Path("disk")) == []


def test_names_with_odd_characters_are_fine_outputs(lwmm: Command, tiny: Models) -> None:
    for name in ("a*[b]", "-x- y'\"", "é 漢", ".hidden"):
        folder = Path("odd") / name
        for more in ((), ("--overwrite",)):
            assert lwmm("merge", tiny.anchor, tiny.donor, "-o", folder, *more).code == 0
        assert_complete(folder)
        assert lwmm("verify", folder).code == 0
    assert len(list(Path("odd").iterdir())) == 4


def test_a_name_that_is_no_text_is_refused(lwmm: Command, tiny: Models, tmp_path: Path) -> None:
    odd = os.fsdecode(b"r\xe4n")
    words = ("'r\\udce4n' is not written in UTF-8",)
    assert_refused(lwmm("merge", tiny.anchor, tiny.donor, "-o", odd), 1, *words, "with -o")
    assert_refused(lwmm("merge", tiny.anchor, odd), 1, *words, "Rename it")
    assert_refused(lwmm("merge", tiny.anchor, tiny.donor, "-o", ""), 1, "no name of its own")
    assert list((tmp_path / "here").iterdir()) == []


def test_too_little_disk_is_said_before_anything_is_read(
    lwmm: Command, tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    words = ("the merge needs", "MB", "Make room, or choose another folder with -o")
    refused_everywhere(lwmm, tmp_path, 1, words, tiny.anchor, tiny.donor)


def test_a_disk_that_becomes_full_leaves_nothing(tiny: Models, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    for more in ([], ["--json"]):
        done = subprocess.run(
            [PROGRAM, "merge", tiny.anchor, tiny.donor, "-o", "deep/er/out", *more],
            cwd=tmp_path,
            env=quiet_environment(),
            preexec_fn=limit,
            capture_output=True,
            text=True,
            check=False,
        )
        found = Finished(done.returncode, done.stdout, done.stderr)
        assert_refused(found, 1, "the disk became full", "deep/er", "Nothing was kept", "Make room")
    assert everything_below(tmp_path) == {}


# ---------------------------------------------------------------------- usage

USAGE: dict[str, tuple[tuple[str, ...], Words]] = {
    "no model": ((), ("name an anchor and at least one donor",)),
    "one model": (("{anchor}",), ("name an anchor and at least one donor",)),
    "unknown option": (("{anchor}", "{donor}", "--colour"), ("--colour", "--help")),
    "schedule": (("{anchor}", "{donor}", "--schedule", "sine"), ("'sine'", "linear, cosine")),
    "batch norm": (("{anchor}", "{donor}", "--batch-norm", "mean"), ("'mean'", "linear, moment")),
    "scope": (("{anchor}", "{donor}", "--scope", "head"), ("'head'", "auto, all, backbone")),
    "dtype": (("{anchor}", "{donor}", "--dtype", "int8"), ("'int8'", "auto, float32")),
    "output format": (
        ("{anchor}", "{donor}", "--output-format", "onnx"), ("'onnx'", "safetensors, pth"),
    ),
    "shard size": (("{anchor}", "{donor}", "--max-shard-size", "big"), ("'big'", "5GB")),
    "shard size of zero": (("{anchor}", "{donor}", "--max-shard-size", "0"), ("'0'", "5GB")),
    "start after end": (
        ("{anchor}", "{donor}", "--start", "0.9", "--end", "0.1"),
        ("start 0.9 lies after end 0.1", "give a start before"),
    ),
    "start after end by name": (
        ("{anchor}", "{donor}", "--start", "head.fuse", "--end", "stages.0.patch_embed.proj"),
        ("start head.fuse lies after end", "give a start before"),
    ),
    "start over 1": (("{anchor}", "{donor}", "--start", "1.5"), ("start is 1.5", "0 to 1")),
    "start NaN": (("{anchor}", "{donor}", "--start", "nan"), ("start is nan", "0 to 1")),
    "start at no layer": (
        ("{anchor}", "{donor}", "--start", "stages.9"),
        ("start 'stages.9' is no shared layer", "lwmm-hub plan"),
    ),
    "gamma 0": (("{anchor}", "{donor}", "--gamma", "0"), ("gamma is 0", "over 0")),
    "gamma NaN": (("{anchor}", "{donor}", "--gamma", "nan"), ("gamma is nan", "over 0")),
    "gamma text": (("{anchor}", "{donor}", "--gamma", "much"), ("--gamma", "'much'")),
    "endpoint 2": (("{anchor}", "{donor}", "--endpoint", "2"), ("endpoint is 2", "0 to 1")),
    "anchor weight under 1/M": (
        ("{anchor}", "{donor}", "{third}", "--anchor-weight", "0.3"),
        ("anchor-weight is 0.3", "1/3 to 1"),
    ),
    "anchor weight over 1": (
        ("{anchor}", "{donor}", "--anchor-weight", "1.1"), ("anchor-weight is 1.1", "1/2 to 1"),
    ),
    "harmonic with an option": (
        ("{anchor}", "{donor}", "--schedule", "harmonic", "--gamma", "2"),
        ("gamma changes nothing in the harmonic schedule", "leave it out"),
    ),
    "isotropic with a start": (
        ("{anchor}", "{donor}", "--schedule", "isotropic", "--start", "0.3"),
        ("start changes nothing in the isotropic schedule", "leave it out"),
    ),
    "a step with an exponent": (
        ("{anchor}", "{donor}", "--schedule", "step", "--gamma", "2"),
        ("gamma changes nothing in the step schedule", "another schedule"),
    ),
    "no threads": (("{anchor}", "{donor}", "--threads", "0"), ("--threads", "1<=x<=256")),
    "recipe plus models": (
        ("{anchor}", "{donor}", "--recipe", "r.yaml"), ("--recipe holds", "leave models out"),
    ),
    "recipe plus an option": (
        ("--recipe", "r.yaml", "--gamma", "1"), ("--recipe holds", "leave --gamma out"),
    ),
    "recipe plus a flag": (
        ("--recipe", "r.yaml", "--allow-unrelated"), ("leave --allow-unrelated out",),
    ),
    "recipe plus an option that the code calls otherwise": (
        ("--recipe", "r.yaml", "--split", "a"), ("leave --split out",),
    ),
    "private without push": (("{anchor}", "{donor}", "--private"), ("go with --push",)),
    "public without push": (("{anchor}", "{donor}", "--public"), ("go with --push",)),
    "license without push": (("{anchor}", "{donor}", "--license", "mit"), ("go with --push",)),
    "push to no repository": (
        ("{anchor}", "{donor}", "--push", "no repository"), ("'no repository'",),
    ),
    "parent without a recipe": (
        ("{anchor}", "{donor}", "--parent", "city={anchor}"), ("--parent goes with --recipe",),
    ),
    "parent without path": (("--recipe", "r.yaml", "--parent", "a"), ("'a'", "LABEL=PATH")),
}  # fmt: skip


@pytest.mark.parametrize("row", USAGE)
def test_wrong_usage_is_refused(row: str, lwmm: Command, tiny: Models, tmp_path: Path) -> None:
    arguments, words = USAGE[row]
    refused_everywhere(
        lwmm, tmp_path, 2, words, *(text.format(**tiny._asdict()) for text in arguments)
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("merge", "{anchor}", "{donor}", "--format", "xml"), ("'xml'", "--help")),
        (("mrege",), ("'mrege'", "--help")),
        (("plan", "{anchor}"), ("at least one donor: lwmm-hub plan ANCHOR DONOR",)),
        (("drift", "{anchor}"), ("at least one donor: lwmm-hub drift ANCHOR DONOR",)),
        (("drift", "{anchor}", "{donor}", "--threshold", "0"), ("threshold is 0",)),
        (("drift", "{anchor}", "{donor}", "--threshold", "x"), ("--threshold", "'x'")),
        (("card",), ("DIR", "--help")),
        (("push", "{anchor}"), ("REPO", "--help")),
        (("verify",), ("DIR|REPO", "--help")),
    ],
)
def test_wrong_usage_of_other_commands_is_refused(
    arguments: Words, words: Words, lwmm: Command, tiny: Models
) -> None:
    assert_refused(lwmm(*(text.format(**tiny._asdict()) for text in arguments)), 2, *words)


# ---------------------------------------------------------------------- recipes

GOOD_RECIPE = """\
version: 1
models:
- reference: {anchor}
- reference: {donor}
options:
  schedule: linear
  gamma: 1.0
"""
RECIPES: dict[str, tuple[str, str, int, Words]] = {  # what is replaced, by what, line, words
    "unknown field": ("options:", "optoins:", 5, ("unknown field 'optoins'", "Known:")),
    "unknown option": ("  gamma", "  gama", 7, ("unknown field 'gama' in options", "Known:")),
    "unknown field of a model": (
        "- reference: {donor}", "- path: {donor}", 4, ("unknown field 'path' in a model",)
    ),
    "a field twice": ("  gamma: 1.0", "  schedule: linear", 7, ("'schedule'", "twice")),
    "wrong type": ("gamma: 1.0", "gamma: much", 7, ("gamma must be a number", "'much'")),
    "a list for a number": ("gamma: 1.0", "gamma: [1]", 7, ("gamma must be a number",)),
    "truth for a number": ("gamma: 1.0", "gamma: true", 7, ("gamma must be a number", "'true'")),
    "number for a text": ("schedule: linear", "schedule: 3", 6, ("schedule must be a text",)),
    "wrong value": ("schedule: linear", "schedule: sine", 6, ("'sine' is unknown: choose",)),
    "value out of range": ("gamma: 1.0", "gamma: -1", 7, ("gamma is -1.0: give a number over 0",)),
    "endless value": ("gamma: 1.0", "gamma: .inf", 7, ("gamma is inf: give a number over 0",)),
    "weight under 1/M": (
        "gamma: 1.0", "anchor_weight: 0.2", 7, ("anchor-weight is 0.2", "1/2 to 1")
    ),
    "options that contradict": (
        "gamma: 1.0", "start: 0.9\n  end: 0.1", 7, ("start 0.9 lies after end 0.1",)
    ),
    "another version": ("version: 1", "version: 2", 1, ("version 2 is unknown",)),
    "no version": ("version: 1\n", "", 1, ("the field 'version' is missing",)),
    "no models": ("models:", "options:", 5, ("'options'", "twice")),
    "one model": ("- reference: {donor}\n", "", 3, ("at least two models",)),
    "a model of two kinds": (
        "- reference: {donor}",
        "- reference: org/name\n  local: x",
        4,
        ("either 'reference' or 'local'",),
    ),
    "no reference": ("reference: {donor}", "reference: a b c", 4, ("Write 'org/name'",)),
    "wrong checksum": (
        "- reference: {donor}",
        "- reference: {donor}\n  sha256:\n    model.safetensors: abc",
        6,
        ("64 hexadecimal digits",),
    ),
    "no YAML": ("options:", "options: {{{{", 7, ("Mend the YAML",)),
    "a Python object": (
        "gamma: 1.0", "gamma: !!python/object/apply:os.mkdir [executed]", 7, ("gamma",)
    ),
    "a layer that is none": (
        "gamma: 1.0", "end: stages.9", 7, ("end 'stages.9' is no shared layer", "Give a fraction")
    ),
    "layers in a wrong order": (
        "  gamma: 1.0", "  end: stages.1\n  start: stages.2", 8, ("lies after end stages.1",)
    ),
    "weights for no layer": (
        "linear\n  gamma: 1.0\n",
        "table\nlayer_weights:\n  stages: [1, 0]\n  head: [1, 0]\n  nose: [1, 0]\n",
        10,
        ("a row for 'nose', which is no shared layer",),
    ),
    "a layer without weights": (
        "linear\n  gamma: 1.0\n",
        "table\nlayer_weights:\n  stages: [1, 0]\n",
        6,
        ("no row for the layer 'head.",),
    ),
    "a list": (GOOD_RECIPE, "- 1\n", 1, ("a recipe is a table of fields",)),
    "nothing": (GOOD_RECIPE, "", 1, ("a recipe is a table of fields",)),
}  # fmt: skip


@pytest.mark.parametrize("row", RECIPES)
def test_a_wrong_recipe_is_refused_with_its_line(
    row: str, lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    old, new, line, words = RECIPES[row]
    assert old in GOOD_RECIPE
    text = GOOD_RECIPE.replace(old, new).format(**tiny._asdict())
    recipe = tmp_path / "here" / "r.yaml"
    recipe.write_text(text)
    words = (f"r.yaml, line {line}: ", *words)
    refused_everywhere(lwmm, tmp_path, 1, words, "--recipe", recipe)
    assert not Path("executed").exists()


def test_the_recipe_that_the_table_changes_is_right(
    lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    (tmp_path / "here" / "r.yaml").write_text(GOOD_RECIPE.format(**tiny._asdict()))
    assert lwmm("merge", "--recipe", "r.yaml").code == 0


@pytest.fixture(scope="module")
def merged(tiny: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "m"
    lw.merge(tiny.anchor, tiny.donor, output=folder)
    return folder


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("plan {anchor} {donor} --weights F", 2),
        ("merge --recipe F -o out", 1),
        ("card m --scores F", 2),
        ("card m", 1),
        ("verify m", 1),
    ],
)
def test_a_pipe_or_a_device_is_no_text(
    command: str, code: int, kind: str, lwmm: Command, tiny: Models, merged: Path, tmp_path: Path
) -> None:
    """One waited for ever for somebody to write to it, the other was read until memory ended."""
    here = tmp_path / "here"
    shutil.copytree(merged, here / "m")
    file = here / ("F" if " F" in command else "m/lwmm_manifest.json")
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(kind)
    found = lwmm(*command.format(**tiny._asdict()).split())
    assert_refused(found, code, file.name, "it is no regular file")


@pytest.mark.parametrize("kind", ["|", "<()"])
def test_a_text_may_come_through_what_is_open_already(
    kind: str, lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    for folder in (tiny.anchor, tiny.donor):
        shutil.copytree(folder, here / folder.name)
    assert lwmm("merge", "city", "rain", "-o", "out", "--schedule", "step").code == 0
    weights = lwmm("plan", "city", "rain", "--schedule", "step", "--json")
    (here / "plan.json").write_text(weights.out)
    shutil.copy(here / "out" / "lwmm_recipe.yaml", here / "out" / "r.yaml")
    for place, file, command in (
        (here, "plan.json", "plan city rain --json --weights"),
        (here / "out", "r.yaml", "merge -o ../again --recipe"),
    ):
        ways = {"|": f"cat {file} | {PROGRAM} {command} /dev/stdin"}
        ways["<()"] = f"{PROGRAM} {command} <(cat {file})"
        bash = ["bash", "-c", ways[kind]]
        done = subprocess.run(bash, cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if place == here:
            rows = [json.loads(text)["layers"] for text in (done.stdout, weights.out)]
            assert rows[0] == rows[1]
    assert_complete(here / "again")
    bash[2] = f"{PROGRAM} plan city rain --weights /dev/stdin < /dev/zero"
    done = subprocess.run(bash, cwd=here, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "/dev/stdin: it has over 16 MiB" in done.stderr


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("city", "merges.txt"),
        ("city", "config.json"),
        ("city", "LICENSE"),
        ("rain", "NOTICE.md"),
        ("rain", "LICENSES"),
    ],
)
def test_what_a_link_leads_to_elsewhere_is_copied_and_not_for_others(
    model: str, name: str, lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    """One folder of a project may link to another's licence; a push would publish a private key."""
    here = tmp_path / "here"
    for folder in (tiny.anchor, tiny.donor):
        shutil.copytree(folder, here / folder.name)
        card = here / folder.name / "README.md"  # where it has no id of the Hub, texts are copied
        card.write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n")
    link, file = here / model / name, "MIT.txt" if name == "LICENSES" else ""
    secret = here / "secret" / "id_rsa"
    secret.parent.mkdir()
    words = link.read_text() if name == "config.json" else "-----BEGIN OF TERMS-----"
    if file:
        secret.mkdir()
    (secret / file if file else secret).write_text(words)
    link.unlink(missing_ok=True)
    link.symlink_to("../secret/id_rsa")
    shown = f"{name}/{file}".rstrip("/")
    done = lwmm("merge", "city", "rain", "-o", "out")
    assert done.code == 0, done.err
    assert f"{shown} of {model} comes over a link from outside its folder: it is copied" in done.err
    out = here / "out" / ("LICENSE" if name in {"LICENSE", "LICENSES", "NOTICE.md"} else name)
    assert words in out.read_text() or name == "config.json"
    assert not any(path.is_symlink() for path in out.parent.iterdir())
    assert_refused(
        lwmm("push", "out", "me/x"),
        1,
        f"{shown} of {model} comes over a link from outside its folder",
        "kept: out",
    )
    done = lwmm(
        "merge", "out", "rain", "-o", "further"
    )  # no link is left, and it is no more public
    assert (done.code, f"{out.name} of out comes over a link" in done.err) == (0, True), done.err
    refused = f"{out.name} of out comes over a link from outside its folder"
    assert_refused(lwmm("push", "further", "me/x"), 1, refused)
    assert_refused(lwmm("convert", "out", "converted"), 1, f"out: {out.name} comes over a link")
    if model == "city":
        done = lwmm("convert", "city", "converted")
        assert_refused(done, 1, f"{model}: {name} comes over a link from outside its folder")
        assert not (here / "converted").exists()
    link.unlink()  # a link within the folder is as good as a file
    inside = here / model / "kept" / "file"
    inside.parent.mkdir()
    secret.rename(inside)
    link.symlink_to("kept/file")
    done = lwmm("merge", "city", "rain", "-o", "again")
    assert (done.code, "outside" in done.err) == (0, False)


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_card_replaces_what_bears_its_name_and_writes_through_nothing(
    kind: str, lwmm: Command, merged: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(merged, here / "m")
    names = [path.name for path in (here / "m").iterdir()]
    (here / "victim.txt").write_text("precious")
    card = here / "m" / "README.md"
    text = card.read_text("utf-8")
    card.unlink()
    if kind == "pipe":
        os.mkfifo(card)
    else:
        card.symlink_to("../victim.txt")
    assert lwmm("card", "m").code == 0
    assert card.is_file()
    assert not card.is_symlink()
    assert card.read_text("utf-8") == text
    assert (here / "victim.txt").read_text() == "precious"
    assert sorted(path.name for path in (here / "m").iterdir()) == sorted(names)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("cannot read the recipe r.yaml", "Give its path")),
        (b"\xff\xfe\x80", ("cannot read the recipe r.yaml", "not text")),
        (b"[" * 10_000, ("r.yaml", "recipe")),
        (b"a: &a [x]\nb: *c\n", ("r.yaml, line 2",)),
        (b"\x00", ("r.yaml, line 1",)),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(
    content: bytes | None, words: Words, lwmm: Command, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "here" / "r.yaml").write_bytes(content)
    refused_everywhere(lwmm, tmp_path, 1, words, "--recipe", "r.yaml")


# ---------------------------------------------------------------------- hostile names

HOSTILE = (
    "](http://evil) <script>alert(1)</script>",
    "| a | b |\n| - | - |",
    "---\nlicense: mit\n---",
    "\x1b[31mred\x1b[0m",
    "{{ 7 * 7 }} {% raw %}",
    "# heading `code` *bold*",
)


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    text = (folder / "README.md").read_text("utf-8")
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_labels_and_licence_names_are_escaped(lwmm: Command, tiny: Models, tmp_path: Path) -> None:
    anchor = tmp_path / "anchor"
    shutil.copytree(tiny.anchor, anchor)
    config = json.loads((anchor / "config.json").read_text())
    config["id2label"] = {str(i): HOSTILE[i] for i in range(5)}
    config["id2label"]["5"] = "half a character \ud800"
    (anchor / "config.json").write_text(json.dumps(config))
    declared = {"license": "other", "license_name": HOSTILE[0], "license_link": HOSTILE[1]}
    (anchor / "README.md").write_text(f"---\n{yaml.safe_dump(declared)}---\n")
    donor = tmp_path / "<b>*donor*"
    shutil.copytree(tiny.donor, donor)
    declared = {"license": HOSTILE[2], "datasets": [HOSTILE[0]], "tags": [HOSTILE[1]]}
    (donor / "README.md").write_text(f"---\n{yaml.safe_dump(declared)}---\n")

    found = lwmm("merge", anchor, donor)
    assert found.code == 0, found.err
    head, body = card_of(tmp_path / "here" / "merged")
    assert head["pipeline_tag"] == "image-segmentation"
    assert head["license"] == "other"
    assert "\x1b" not in body
    prose = re.sub(r"^```.*?^```$", "", body, flags=re.DOTALL | re.MULTILINE)  # without code
    for raw in ("<script", "](http://evil)", "<b>", "*donor*", "\n| - | - |"):
        assert raw not in prose
    assert (
        json.loads((tmp_path / "here/merged/config.json").read_text())["id2label"]["0"]
        == (HOSTILE[0])
    )
    again = lwmm("card", "merged")
    assert again.code == 0, again.err
    shown = lwmm("plan", anchor, donor)
    assert shown.code == 0
    assert "\x1b" not in shown.out


def test_keys_from_a_file_cannot_speak_to_the_terminal(
    lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    anchor = changed(
        tiny.anchor, tmp_path / "a", lambda t: t.update({"\x1b[31m\nlwmm-hub: 1": np.ones(3, "f4")})
    )
    for format in ("human", "agent"):
        found = lwmm("plan", anchor, tiny.donor, "--format", format)
        assert found.code == 0, found.err
        assert "\x1b" not in found.out
    (tmp_path / "bad").mkdir()
    evil = {"\x1b[31m\nlwmm-hub: fine": described(0, 8, "F33")}
    (tmp_path / "bad" / "model.safetensors").write_bytes(whole(evil, bytes(8)))
    found = lwmm("plan", tiny.anchor, tmp_path / "bad")
    assert_refused(found, 1, "unknown dtype")
    assert "\x1b" not in found.err


@pytest.mark.parametrize("wrong", ["NaN", "no common shape"])
def test_keys_in_an_error_cannot_speak_to_the_terminal(
    wrong: str, lwmm: Command, tmp_path: Path
) -> None:
    escape = "\x1b]0;pwned\x07\x1b[31m\u202e"
    random = np.random.default_rng(0)
    shape = (8, 8) if wrong == "NaN" else (9, 8)
    for name, size in (("a", (8, 8)), ("b", shape)):
        values = {f"backbone.{escape}{i}.weight": random.normal(size=size) for i in range(3)}
        tensors = cast(values, "float32")
        if name == "b" and wrong == "NaN":
            tensors[f"backbone.{escape}1.weight"][0, 0] = np.nan
        write_safetensors(tmp_path / f"{name}.safetensors", tensors)
    models = (tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--allow-unrelated")
    found = lwmm("merge", *models)
    assert_refused(found, 1 if wrong == "NaN" else 4, "NaN in" if wrong == "NaN" else "share no")
    assert found.err.rstrip("\n").isprintable()


def test_hostile_names_are_inert_in_a_notebook(tiny: Models, tmp_path: Path) -> None:
    import lwmm_hub as lw

    evil = "<img src=x onerror=alert(1)>\"'\x1b[31m"
    anchor = changed(
        tiny.anchor,
        tmp_path / evil,
        lambda t: t.update({f"decode_head.{evil}": np.ones(3, "f4")}),
    )
    config = json.loads((anchor / "config.json").read_text())
    config["id2label"] = {str(i): f"{evil}{i}" for i in range(5)}
    (anchor / "config.json").write_text(json.dumps(config))
    (anchor / "README.md").write_text(f"---\n{yaml.safe_dump({'license': evil})}---\n")
    html = lw.plan(anchor, tiny.donor)._repr_html_()
    assert "onerror" in html
    assert "<img" not in html
    assert "\x1b" not in html
    tags = re.findall(r"<[^>]*>", html)
    assert not [tag for tag in tags if "onerror" in tag]


# ---------------------------------------------------------------------- as a process


def test_a_refusal_of_a_process_is_one_line_without_traceback(tiny: Models, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    found = run("merge", tiny.anchor, "bad", "--json", cwd=tmp_path)
    assert_refused(found, 1, "bad has no weights")
    loud = run("merge", tiny.anchor, "bad", cwd=tmp_path, HF_DEBUG="1")
    assert loud.code == 1
    assert "Traceback" in loud.err
