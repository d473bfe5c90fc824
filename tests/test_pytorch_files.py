"""Weights in files of torch.save: the same bytes torch sees, and nothing executed."""

from __future__ import annotations

import datetime
import os
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pickle_builder as by_hand
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lwmm_hub.checkpoint.entries import LocalFile, TensorEntry
from lwmm_hub.checkpoint.pytorch import (
    WRAPPERS,
    Opaque,
    PickledFile,
    contiguous,
    find_state_dicts,
    locate_entry,
    read_pytorch,
    read_pytorch_zip,
    sniff,
    strip_prefix,
)
from lwmm_hub.checkpoint.spool import new_spool
from lwmm_hub.errors import CheckpointError, UnsafePickleError

SHARED = Path(__file__).parents[2] / "shared" / "checkpoints"
REAL = sorted(SHARED.glob("*/*.pth"))
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")
RARE_DTYPES = ("bool", "complex64", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")


class CountingFile:
    """A reader that notes what was asked for, as a file on the Hub would be billed."""

    derived = False

    def __init__(self, path: Path) -> None:
        self._file = LocalFile(path, path.name)
        self.reads: list[tuple[int, int]] = []

    @property
    def name(self) -> str:
        return self._file.name

    @property
    def size(self) -> int:
        return self._file.size

    def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return self._file.read(offset, length)


def local(path: Path) -> LocalFile:
    return LocalFile(path, f"run/{path.name}")


def tensor_of_bytes(entry: TensorEntry, data: bytes) -> torch.Tensor:
    names = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
    from lwmm_hub.checkpoint.entries import dtype_name

    dtype = names.get(entry.dtype) or getattr(torch, dtype_name(entry.dtype))
    if not data:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(entry.shape)


def values(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a file as this package reads it."""
    file, reader = read_pytorch(local(path))
    entries, spooled = contiguous(file.entries, reader)
    readers = {reader.name: reader} | ({spooled.name: spooled} if spooled else {})
    return {
        key: tensor_of_bytes(entry, readers[entry.file].read(entry.offset, entry.size))
        for key, entry in entries.items()
    }


def flattened(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a tree as torch loads it, under the same names."""
    if isinstance(value, torch.Tensor):
        return {path: value.detach()}
    if isinstance(value, dict):
        items = [(k if isinstance(k, str) else f"[{k!r}]", v) for k, v in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"[{i}]", v) for i, v in enumerate(value)]
    else:
        return {}
    found: dict[str, torch.Tensor] = {}
    for key, item in items:
        found |= flattened(item, f"{path}/{key}" if path else key)
    return found


def same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    bits = [t.contiguous().flatten().view(torch.uint8) for t in (ours, theirs)]
    return torch.equal(*bits)


def assert_same_as_torch(path: Path) -> None:
    theirs = flattened(torch.load(path, weights_only=False, map_location="cpu"))
    ours = values(path)
    assert list(ours) == list(theirs)
    assert [key for key in ours if not same_bits(ours[key], theirs[key])] == []


def random_tensor(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    kind = getattr(torch, dtype)
    size = torch.empty((), dtype=kind).element_size() * int(np.prod(shape))
    if dtype == "bool":
        return torch.rand(shape) > 0.5
    bits = torch.randint(0, 256, (size,), dtype=torch.uint8)  # any bits: NaNs and Infs too
    return bits.view(kind).reshape(shape)


def of_every_kind() -> dict[str, Any]:
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    batch = torch.randn(2, 3, 4, 5)
    tied = torch.nn.Parameter(torch.randn(3, 2))
    return {
        **{f"kind.{d}": random_tensor(d, (3, 5)) for d in (*DTYPES, *RARE_DTYPES)},
        **{f"turned.{d}": random_tensor(d, (3, 5)).t() for d in (*DTYPES, "bool", "complex64")},
        "scalar": torch.tensor(3.0),
        "counter": torch.tensor(7),
        "none": torch.empty(0),
        "none.of.many": torch.empty(3, 0, 2),
        "rows": base[2:4],
        "columns": base[:, 3:5],
        "every.other": base[::2, ::3],
        "channels.last": batch.to(memory_format=torch.channels_last),
        "expanded": torch.randn(1, 4).expand(3, 4),
        "one.row": base[:, :1],
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "tied.a": tied,
        "tied.b": tied,
        "sizes of one": torch.randn(1, 5, 1).transpose(0, 2),
        "nested": {"deeper": [torch.ones(2), (torch.zeros(1), {3: torch.ones(1)})], "text": "x"},
    }


# what torch reads, bit for bit


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_tensor_has_the_bytes_torch_sees(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "all.pth"
    torch.save(of_every_kind(), path, pickle_protocol=protocol)
    assert_same_as_torch(path)


def test_legacy_files_have_the_bytes_torch_sees(tmp_path: Path) -> None:
    path = tmp_path / "all.pth"
    new = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")  # torch cannot either
    tensors = {k: v for k, v in of_every_kind().items() if k.removeprefix("kind.") not in new}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert sniff(local(path)) == "legacy"
    assert_same_as_torch(path)


@pytest.mark.skipif(not REAL, reason=f"the example checkpoints are not in {SHARED}")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_legacy_files_and_their_zip_copies_hold_the_same(tmp_path: Path, path: Path) -> None:
    copy = tmp_path / "copy.pth"
    torch.save(torch.load(path, weights_only=True, map_location="cpu"), copy)
    assert (sniff(local(path)), sniff(local(copy))) == ("legacy", "zip")
    assert_same_as_torch(path)
    assert_same_as_torch(copy)
    old, new = values(path), values(copy)
    assert list(old) == list(new)
    assert all(same_bits(old[key], new[key]) for key in old)


def test_offsets_are_the_same_whether_located_at_once_or_later(tmp_path: Path) -> None:
    path = tmp_path / "all.pth"
    torch.save(of_every_kind(), path)
    now = read_pytorch_zip(local(path), locate=True).entries
    later = read_pytorch_zip(local(path), locate=False).entries
    assert all(entry.zip_record is not None for entry in later.values())
    assert {key: locate_entry(local(path), entry) for key, entry in later.items()} == now
    assert all(locate_entry(local(path), entry) is entry for entry in now.values())


def test_strides_are_set_only_where_elements_do_not_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "all.pth"
    torch.save(of_every_kind(), path)
    entries = read_pytorch_zip(local(path), locate=True).entries
    strided = {key for key, entry in entries.items() if entry.strides is not None}
    theirs = flattened(torch.load(path, weights_only=True))
    assert strided == {key for key, tensor in theirs.items() if not tensor.is_contiguous()}
    gathered, spooled = contiguous(entries, local(path))
    assert spooled is not None
    assert {key for key, entry in gathered.items() if entry.file == spooled.name} == strided
    assert os.fstat(spooled.fd).st_size == spooled.size
    spooled.close()


def test_tied_tensors_stay_one(tmp_path: Path) -> None:
    tied = torch.randn(4, 3)
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pth"
        weights = {"a": tied, "b": tied, "c": tied.t(), "d": tied.t()}
        torch.save(weights, path, _use_new_zipfile_serialization=not legacy)
        file, reader = read_pytorch(local(path))
        entries, _ = contiguous(file.entries, reader)
        assert entries["a"].offset == entries["b"].offset
        assert entries["c"].offset == entries["d"].offset


def test_a_file_without_strided_tensors_needs_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "plain.pth"
    torch.save({"a": torch.ones(3)}, path)
    entries = read_pytorch_zip(local(path), locate=True).entries
    assert contiguous(entries, local(path)) == (entries, None)


def test_a_bare_tensor_and_an_empty_dictionary_are_read(tmp_path: Path) -> None:
    for content, keys in ((torch.ones(2), [""]), ({}, []), ([torch.ones(1)], ["[0]"])):
        path = tmp_path / "some.pth"
        torch.save(content, path)
        file = read_pytorch_zip(local(path), locate=True)
        assert list(file.entries) == keys
        with pytest.raises(CheckpointError, match="no state dict"):
            find_state_dicts(file.tree, file.name)


# reads: few, bounded, no tensor data, no torch


def test_indexing_reads_a_few_ranges_and_no_tensor_data(tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    torch.save({f"layer.{i}.weight": torch.randn(64, 64) for i in range(1200)}, path)
    reader = CountingFile(path)
    file = read_pytorch_zip(reader, locate=False)
    assert len(file.entries) == 1200
    assert len(reader.reads) <= 4
    assert sum(length for _, length in reader.reads) < 0.03 * reader.size
    reader.reads.clear()
    locate_entry(reader, file.entries["layer.7.weight"])
    assert [length for _, length in reader.reads] == [30]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_reading_a_file_imports_no_torch(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "all.pth"
    content = {"a": torch.randn(3, 4).t(), "b": [torch.ones(2)]} if legacy else of_every_kind()
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    code = f"""
import sys
from pathlib import Path
from lwmm_hub.checkpoint.entries import LocalFile
from lwmm_hub.checkpoint.pytorch import contiguous, find_state_dicts, read_pytorch
file, reader = read_pytorch(LocalFile(Path({str(path)!r}), "all.pth"))
contiguous(file.entries, reader)
find_state_dicts(file.tree, file.name)
assert not {{"torch", "transformers", "pickle"}} & (set(sys.modules) - before), "imported"
"""
    code = "import sys, numpy; before = set(sys.modules)\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# where the weights lie


def found(tmp_path: Path, content: Any, copy: str = "student") -> Any:
    path = tmp_path / "some.pth"
    torch.save(content, path)
    file = read_pytorch_zip(local(path), locate=True)
    return find_state_dicts(file.tree, file.name, copy)


def weights(*keys: str) -> dict[str, torch.Tensor]:
    return OrderedDict((key, torch.ones(2)) for key in keys)


def test_a_plain_state_dict_is_taken_as_it_is(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    state = found(tmp_path, module.state_dict())
    assert (state.path, state.prefix, state.parts, state.unused) == ((), "", (), ())
    assert list(state.entries) == list(module.state_dict())
    assert all(entry.key == key for key, entry in state.entries.items())


@pytest.mark.parametrize("row", [row for row in WRAPPERS if len(row) == 1])
def test_every_wrapper_of_the_table_is_unwrapped(tmp_path: Path, row: tuple[str]) -> None:
    state = found(tmp_path, {"epoch": 3, row[0]: weights("a.weight", "a.bias")})
    assert state.path == row
    assert list(state.entries) == ["a.weight", "a.bias"]


def test_the_trained_weights_come_before_averages_of_them(tmp_path: Path) -> None:
    content = {"params_ema": weights("a"), "params": weights("a"), "ema": weights("a", "b")}
    state = found(tmp_path, content)
    assert state.path == ("params",)
    assert state.unused == ("'params_ema': 1 tensors", "'ema': 2 tensors")


def test_the_student_comes_before_its_teacher(tmp_path: Path) -> None:
    content = {"teacher": weights("a", "b"), "student": weights("a", "b"), "epoch": 1}
    state = found(tmp_path, content)
    assert (state.path, state.unused) == (("student",), ("'teacher': 2 tensors",))


@pytest.mark.parametrize(("average", "other"), [("ema", "net_g"), ("teacher", "online")])
def test_an_average_beside_what_may_be_the_network_is_refused(
    average: str, other: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=f"an average of weights, '{average}', .*'{other}'"):
        found(tmp_path, {average: weights("a", "b"), other: weights("a", "b")})
    small = found(tmp_path, {average: weights("a", "b"), other: weights("a")})
    assert (small.path, small.unused) == ((average,), (f"'{other}': 1 tensors",))
    both = found(tmp_path, {average: weights("a"), "params_ema": weights("a"), "optimizer": {}})
    assert both.path in {(average,), ("params_ema",)}


def test_wrappers_may_be_nested_and_an_average_asked_for(tmp_path: Path) -> None:
    state = found(tmp_path, {"model": {"state_dict": weights("module.a", "module.b")}})
    assert (state.path, state.prefix) == (("model", "state_dict"), "module.")
    state = found(tmp_path, {"model": weights("a"), "ema": weights("a")}, "ema")
    assert (state.path, state.copy, state.unused) == (("ema",), "ema", ("'model': 1 tensors",))


def test_optimizer_state_is_never_taken(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2)).sum().backward()
    optimizer.step()
    content = {"optimizer": optimizer.state_dict(), "weights": module.state_dict()}
    state = found(tmp_path, content)
    assert (state.path, state.unused) == (("weights",), ())
    with pytest.raises(CheckpointError, match="no state dict"):
        found(tmp_path, {"optimizer": optimizer.state_dict()})


def test_a_tensor_beside_the_wrapper_is_reported(tmp_path: Path) -> None:
    state = found(tmp_path, {"best": torch.tensor(0.5), "state_dict": weights("a", "b")})
    assert state.path == ("state_dict",)
    assert state.unused == ("top level: 1 tensors",)


def test_a_few_averages_do_not_replace_a_plain_state_dict(tmp_path: Path) -> None:
    state = found(tmp_path, {**weights("a", "b", "c"), "ema": weights("a"), "version": 2})
    assert (state.path, list(state.entries)) == ((), ["a", "b", "c"])
    assert state.unused == ("'ema': 1 tensors", "'version': not a tensor")


def test_a_model_saved_in_parts_keeps_their_names(tmp_path: Path) -> None:
    content = {
        "iteration": 5,
        "feature_extractor": weights("module.backbone.conv1.weight"),
        "classifier": weights("module.conv2d_list.0.weight"),
        "model_D": weights("module.D.weight"),
        "optimizer_fea": {"state": {0: {"momentum_buffer": torch.ones(1)}}},
    }
    state = found(tmp_path, content)
    assert (state.path, state.parts) == ((), ("feature_extractor", "classifier"))
    assert state.prefix == "module."
    assert list(state.entries) == [
        "feature_extractor/backbone.conv1.weight",
        "classifier/conv2d_list.0.weight",
    ]
    assert state.unused == ("'model_D': 1 tensors",)


def test_several_unknown_dictionaries_are_named_and_none_is_picked(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'encoder', 'decoder'"):
        found(tmp_path, {"encoder": weights("a"), "decoder": weights("a")})


def test_keys_that_are_not_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not text"):
        found(tmp_path, {0: torch.ones(1), "a": torch.ones(1)})


def test_a_prefix_is_stripped_only_from_all_keys() -> None:
    prefix, stripped = strip_prefix(["module._orig_mod.a", "module._orig_mod.b"])
    assert (prefix, list(stripped.values())) == ("module._orig_mod.", ["a", "b"])
    assert strip_prefix(["module.a", "b"]) == ("", {"module.a": "module.a", "b": "b"})
    assert strip_prefix(["module."])[0] == ""
    assert strip_prefix([]) == ("", {})


@given(st.lists(st.text("modules._", max_size=20), unique=True), st.sampled_from(["", "module."]))
def test_a_stripped_prefix_can_be_put_back(keys: list[str], before: str) -> None:
    keys = [before + key for key in keys]
    prefix, stripped = strip_prefix(keys)
    assert [prefix + key for key in stripped.values()] == keys


def test_metadata_of_training_stays_inert(tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    meta = {
        "loss": np.float64(0.5),
        "palette": np.zeros((3, 3)),
        "when": datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
        "where": Path("/x"),
        "seen": {1, 2},
        "counts": defaultdict(list, {"a": [1]}),
        (1, 2): 3,
        "shape": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "classes": ("road", "sky"),
        "big": -(2**130),
        "pi": 3.25,
        "raw": b"abc",
    }
    for protocol in (2, 5):
        torch.save({"meta": meta, "state_dict": weights("a")}, path, pickle_protocol=protocol)
        tree: Any = read_pytorch_zip(local(path), locate=True).tree
        read = tree["meta"]
        opaque = {key for key, value in read.items() if isinstance(value, Opaque)}
        assert opaque >= {"loss", "palette", "when", "where", "seen", "device", "dtype"}
        assert read["counts"] == {"a": [1]}
        assert (read["shape"], read["classes"]) == ((1, 2), ("road", "sky"))
        assert (read["big"], read["pi"]) == (-(2**130), 3.25)


# what is refused: nothing happens but our error


class Call:
    """Unpickles by calling `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ["system", "eval", "getattr", "open", "module"])
def test_code_in_a_pickle_is_refused_and_not_run(
    tmp_path: Path, kind: str, protocol: int, legacy: bool
) -> None:
    trace = tmp_path / "trace"
    payload = {
        "system": Call(os.system, f"touch {trace}"),
        "eval": Call(eval, f"open({str(trace)!r}, 'w')"),
        "getattr": Call(getattr, OrderedDict, "fromkeys"),
        "open": Call(open, str(trace), "w"),
        "module": torch.nn.Linear(2, 2),
    }[kind]
    named = {
        "system": f"{os.system.__module__}.system",
        "module": "torch.nn.modules.linear.Linear",
        "open": "open",
    }.get(kind, f"builtins.{kind}")
    path = tmp_path / "latest.pth"
    content = {"state_dict": weights("a"), "extra": payload}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafePickleError) as caught:
        read_pytorch(local(path))
    message = str(caught.value)
    assert message.startswith("run/latest.pth ")
    assert "nothing was executed" in message
    assert "\n" not in message
    assert "weights_only" not in message
    assert named in message
    assert not trace.exists()


SYSTEM = by_hand.name("posix", "system")


UNSAFE = {
    "global": SYSTEM,
    "stack global": by_hand.text("posix") + by_hand.text("system") + b"\x93",
    "reduce": SYSTEM + by_hand.text("touch trace") + b"\x85R",
    "new object": SYSTEM + by_hand.text("touch trace") + b"\x85\x81",
    "inst": b"(" + by_hand.text("touch trace") + b"iposix\nsystem\n",
    "obj": b"(" + SYSTEM + by_hand.text("touch trace") + b"o",
    "ext1": b"\x82\x01",
    "ext2": b"\x83\x01\x00",
    "ext4": b"\x84\x01\x00\x00\x00",
    "persid": b"Pstorage\n",
    "buffer": b"\x97",
    "python 2": by_hand.name("__builtin__", "eval"),
    "torch.load": by_hand.name("torch.serialization", "load"),
    "dotted": by_hand.text("collections") + by_hand.text("OrderedDict.fromkeys") + b"\x93",
    "dotted module": by_hand.name("torch._utils._rebuild_tensor_v2", "__globals__"),
    "long name": by_hand.name("a" * 5000, "b\x1b[31m"),
}


@pytest.mark.parametrize("body", UNSAFE.values(), ids=list(UNSAFE))
def test_instructions_that_reach_for_code_are_refused(tmp_path: Path, body: bytes) -> None:
    path = by_hand.write(tmp_path, by_hand.archive(by_hand.pickled(body)))
    with pytest.raises(UnsafePickleError, match="nothing was executed") as caught:
        read_pytorch(local(path))
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("body", UNSAFE.values(), ids=list(UNSAFE))
def test_legacy_files_that_reach_for_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    header = by_hand.MAGIC + by_hand.pickled(b"M\xe9\x03") + by_hand.pickled(b"}")
    for content in (header + by_hand.pickled(body), by_hand.pickled(body)):
        path = by_hand.write(tmp_path, content)
        with pytest.raises(CheckpointError) as caught:
            read_pytorch(local(path))
        assert len(str(caught.value)) < 500
        assert str(caught.value).isprintable()
    assert [item.name for item in tmp_path.iterdir()] == ["latest.pth"]


TENSOR = by_hand.tensor()
ORDERED = by_hand.name("collections", "OrderedDict")


LIES = {
    "setstate on a name": ORDERED + by_hand.dictionary(__setstate__=SYSTEM[:0] + b"N") + b"b",
    "attributes on a list": b"]}b",
    "calling a tensor": TENSOR + b")R",
    "calling a dtype": by_hand.name("torch", "float32") + b")R",
    "arguments not a tuple": ORDERED + b"NR",
    "dictionary of a dictionary": ORDERED + by_hand.dictionary(a=b"N") + b"\x85R",
    "tensor without storage": by_hand.tensor(source=b"N"),
    "storage that is missing": by_hand.tensor(source=by_hand.storage("9")),
    "storage outside": by_hand.tensor(source=by_hand.storage("../byteorder")),
    "storage too long": by_hand.tensor(source=by_hand.storage(count=5)),
    "storage too short": by_hand.tensor(source=by_hand.storage(count=3), shape=(3,)),
    "storage without end": by_hand.tensor(source=by_hand.storage(count=2**62)),
    "storage of another type": by_hand.tensor(source=by_hand.storage(kind="QInt8Storage")),
    "storage negative": by_hand.tensor(source=by_hand.storage(count=-4)),
    "shape too long": by_hand.tensor(shape=(5,)),
    "shape negative": by_hand.tensor(shape=(-1,)),
    "shape huge": by_hand.tensor(shape=(2**59,), strides=(2**59,)),
    "stride negative": by_hand.tensor(strides=(-1,), offset=3),
    "offset outside": by_hand.tensor(shape=(1,), offset=4),
    "offset huge": by_hand.tensor(shape=(1,), offset=2**200),
    "more sizes than strides": by_hand.tensor(shape=(2, 2)),
    "33 dimensions": by_hand.tensor(shape=(1,) * 33, strides=(1,) * 33),
    "integer of a megabyte": b"\x8b" + struct.pack("<I", 2**20) + b"\x7f" * 2**20,
    "text without end": b"\x8d" + struct.pack("<Q", 2**62),
    "bytes without end": b"B\xff\xff\xff\xff",
    "bytes of 2**64": b"\x8e" + b"\xff" * 8,
    "frame without end": b"\x95" + b"\xff" * 4,
    "unknown memo": b"h\x05",
    "unknown instruction": b"\xfe",
    "unknown protocol": b"\x80\x09N",
    "empty stack": b"",
    "tuple from nothing": b"\x87",
    "no mark": b"e",
    "through a mark": b"]((0a",
    "odd items": b"}(" + by_hand.text("a") + b"u",
    "not UTF-8": b"X\x01\x00\x00\x00\xff",
    "name not UTF-8": b"c\xff\n\xff\n",
    "name not text": b"NN\x93",
    "names of one path": by_hand.dictionary(**{"a/b": TENSOR, "a": by_hand.dictionary(b=TENSOR)}),
    "sparse": by_hand.name("torch._utils", "_rebuild_sparse_tensor"),
    "protocol 0": b"I1\n",
    "self containing": b"]q\x00h\x00a",
    "parameter of nothing": by_hand.name("torch._utils", "_rebuild_parameter") + b")R",
    "typed as a call": by_hand.name("torch._tensor", "_rebuild_from_type_v2")
    + b"("
    + by_hand.name("torch", "device")
    + b"N)Nt"
    + b"R",
}


@pytest.mark.parametrize("body", LIES.values(), ids=list(LIES))
def test_pickles_that_lie_are_refused(tmp_path: Path, body: bytes) -> None:
    path = by_hand.write(tmp_path, by_hand.archive(by_hand.pickled(body)))
    with pytest.raises(CheckpointError) as caught:
        read_pytorch(local(path))
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_a_file_made_by_hand_is_read_so_the_refusals_above_mean_something(tmp_path: Path) -> None:
    path = by_hand.write(
        tmp_path, by_hand.archive(by_hand.pickled(by_hand.dictionary(a=TENSOR, b=TENSOR)))
    )
    assert [tensor.tolist() for tensor in values(path).values()] == [[1, 2, 3, 4]] * 2
    assert_same_as_torch(path)


def laughs(leaf: bytes, levels: int) -> bytes:
    """A list of ten lists of ten lists ... of one leaf, by references."""
    body = leaf + b"q\x00"
    for level in range(levels):
        body += b"0](" + (b"h" + bytes([level])) * 10 + b"eq" + bytes([level + 1])
    return body


BOMBS = {
    "laughs": laughs(b"N", 40),
    "laughs with tensors": laughs(TENSOR, 40),
    "tuples as a key": b"}" + b")" + b"\x94" + b"2\x86" * 100 + b"Ns",
    "deep lists": b"]" * 200_000 + b"a" * 199_999,
    "deep tuples": b")" + b"\x85" * 200_000,
    "more operations than any file has": b"N0" * 2_100_000,
    "long names": by_hand.dictionary(**{"x" * 10**6: laughs(TENSOR, 4)}),
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=list(BOMBS))
def test_small_files_that_describe_much_are_refused_soon(tmp_path: Path, body: bytes) -> None:
    path = by_hand.write(tmp_path, by_hand.archive(by_hand.pickled(body)))
    started = time.monotonic()
    try:
        file = read_pytorch_zip(local(path), locate=True)
    except CheckpointError:
        pass
    else:
        assert not file.entries
    assert time.monotonic() - started < 20


def test_wrappers_around_a_large_dictionary_are_unwrapped_soon(tmp_path: Path) -> None:
    """Counting what each of the 55 holds takes a minute, where the ones below are counted again."""
    leaves = {f"k{i}": b"N" for i in range(1200)}
    shared = by_hand.dictionary(**leaves, w=TENSOR) + b"q\x01"
    body = shared + b"0" + by_hand.dictionary(**{f"d{i}": b"h\x01" for i in range(1000)})
    for _ in range(55):
        body += b"q\x02" + b"0}" + by_hand.text("model") + b"h\x02s"
    path = by_hand.write(tmp_path, by_hand.archive(by_hand.pickled(body)))
    file = read_pytorch_zip(local(path), locate=True)
    assert len(file.entries) == 1000
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="several dictionaries of tensors"):
        find_state_dicts(file.tree, path.name)
    assert time.monotonic() - started < 8


def test_a_tensor_expanded_beyond_bounds_is_not_gathered(tmp_path: Path) -> None:
    huge = by_hand.tensor(shape=(2**40, 4), strides=(0, 1))
    path = by_hand.write(tmp_path, by_hand.archive(by_hand.pickled(by_hand.dictionary(a=huge))))
    file = read_pytorch_zip(local(path), locate=True)
    with pytest.raises(CheckpointError, match="expanded tensors"):
        contiguous(file.entries, local(path))


def test_values_torch_marks_as_negated_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    torch.save({"a": torch.ones(2, dtype=torch.complex64).conj()}, path)
    with pytest.raises(CheckpointError, match="conjugated"):
        read_pytorch(local(path))


def test_dtypes_that_no_merged_file_can_hold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    for legacy in (False, True):
        for tensor in (torch.ones(2, dtype=torch.complex128), torch.eye(2).to_sparse()):
            torch.save({"a": tensor}, path, _use_new_zipfile_serialization=not legacy)
            with pytest.raises(CheckpointError, match=r"cannot be merged|can be merged"):
                read_pytorch(local(path))


# zip archives that lie

GOOD = by_hand.archive(by_hand.pickled(by_hand.dictionary(a=TENSOR)))
END = GOOD.rfind(b"PK\x05\x06")
DIRECTORY = GOOD.find(b"PK\x01\x02")


def patched(content: bytes, at: int, data: bytes) -> bytes:
    return content[:at] + data + content[at + len(data) :]


def with_zip64(records: int, length: int, start: int, found_at: int | None = None) -> bytes:
    """GOOD with a zip64 end of directory that says this."""
    counts = struct.pack("<QQQQ", records, records, length, start)
    wide = b"PK\x06\x06" + struct.pack("<QHHII", 44, 45, 45, 0, 0) + counts
    place = END if found_at is None else found_at
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, place, 1)
    end = GOOD[END : END + 8] + b"\xff" * 12 + b"\x00\x00"
    return GOOD[:END] + wide + locator + end


def entry_at(record: str) -> int:
    return GOOD.find(record.encode(), DIRECTORY) - 46


LYING_ARCHIVES = {
    "directory outside": patched(GOOD, END + 16, struct.pack("<I", 10**9)),
    "directory longer": patched(GOOD, END + 12, struct.pack("<I", 10**9)),
    "more records": patched(GOOD, END + 8, struct.pack("<HH", 9, 9)),
    "fewer records": patched(GOOD, END + 8, struct.pack("<HH", 1, 1)),
    "parts": patched(GOOD, END + 8, struct.pack("<HH", 1, 4)),
    "comment longer": patched(GOOD, END + 20, struct.pack("<H", 9)),
    "bytes behind": GOOD + b"x",
    "record outside": patched(GOOD, entry_at("run/data/0") + 42, struct.pack("<I", 10**9)),
    "records overlap": patched(GOOD, entry_at("run/data/0") + 42, struct.pack("<I", 0)),
    "record longer": patched(GOOD, entry_at("run/data/0") + 20, struct.pack("<II", 99, 99)),
    "record shorter": patched(GOOD, entry_at("run/data/0") + 20, struct.pack("<II", 8, 8)),
    "two sizes": patched(GOOD, entry_at("run/data/0") + 20, struct.pack("<I", 8)),
    "zip64 missing": patched(GOOD, entry_at("run/data/0") + 20, b"\xff" * 8),
    "encrypted": patched(GOOD, entry_at("run/data/0") + 8, struct.pack("<H", 1)),
    "name not UTF-8": patched(GOOD, entry_at("run/data/0") + 46, b"\xff"),
    "twice": GOOD.replace(b"run/data/0", b"run/data.pkl"[:10]),
    "header elsewhere": patched(GOOD, GOOD.find(b"run/data/0") - 30, b"XXXX"),
    "other name": patched(GOOD, GOOD.find(b"run/data/0"), b"run/data/1"),
    "padding lies": patched(GOOD, GOOD.find(b"run/data/0") - 2, b"\xff\xff"),
    "zip64 outside": with_zip64(4, END - DIRECTORY, DIRECTORY, found_at=2**63),
    "zip64 elsewhere": with_zip64(4, END - DIRECTORY, DIRECTORY, found_at=4),
    "zip64 longer": with_zip64(4, 2**60, DIRECTORY),
    "zip64 many": with_zip64(2**60, END - DIRECTORY, DIRECTORY),
    "zip64 later": with_zip64(4, END - DIRECTORY, DIRECTORY + 1),
    "compressed": by_hand.archive(
        by_hand.pickled(by_hand.dictionary(a=TENSOR)),
        {"run/data/0": struct.pack("<4f", 1, 2, 3, 4)},
        zipfile.ZIP_DEFLATED,
    ),
    "big endian": GOOD.replace(b"little", b"big" + b"   "),
    "script": by_hand.archive(by_hand.pickled(b"N"), {"run/code/a.py": b"", "run/data/0": b""}),
    "constants": by_hand.archive(by_hand.pickled(b"N"), {"run/constants.pkl": b""}),
    "two pickles": by_hand.archive(by_hand.pickled(b"N"), {"other/data.pkl": b"N."}),
}


@pytest.mark.parametrize("content", LYING_ARCHIVES.values(), ids=list(LYING_ARCHIVES))
def test_archives_that_lie_are_refused(tmp_path: Path, content: bytes) -> None:
    path = by_hand.write(tmp_path, content)
    with pytest.raises(CheckpointError) as caught:
        read_pytorch(local(path))
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_an_archive_is_said_by_name(tmp_path: Path) -> None:
    for content, word in (
        (GOOD.replace(b"little", b"big   "), "big-endian"),
        (by_hand.archive(b"N.", {"run/constants.pkl": b""}), "TorchScript"),
        (by_hand.archive(b"N.", {"more/data.pkl": b""}), "instead of one"),
        (by_hand.archive(TENSOR + b".", {"run/data/0": b"0" * 16}, zipfile.ZIP_DEFLATED), "compr"),
    ):
        with pytest.raises(CheckpointError, match=word):
            read_pytorch(local(by_hand.write(tmp_path, content)))


def test_zip64_ends_are_read(tmp_path: Path) -> None:
    path = by_hand.write(tmp_path, with_zip64(4, END - DIRECTORY, DIRECTORY))
    assert values(path)["a"].tolist() == [1, 2, 3, 4]


def test_a_directory_with_one_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    path.write_bytes(GOOD)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("run/data/0", struct.pack("<4f", 9, 9, 9, 9))
    with pytest.raises(CheckpointError, match="twice"):
        read_pytorch(local(path))


# files that are something else, or not whole


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><title>Google Drive</title>", "web page"),
        (b"\x1f\x8b\x08" + b"\x00" * 600, "not a PyTorch file"),
        (b"x", "not a PyTorch file"),
        (struct.pack("<Q", 2) + b"{}", "safetensors"),
        (b"\x00" * 257 + b"ustar" + b"\x00" * 250, "tar archive"),
        (b"PK\x03\x04", "damaged or truncated"),
        (b"\x80", "damaged or truncated"),
    ],
)
def test_files_without_weights_are_named(tmp_path: Path, content: bytes, word: str) -> None:
    path = by_hand.write(tmp_path, content)
    with pytest.raises(CheckpointError, match=word) as caught:
        read_pytorch(local(path))
    assert "\n" not in str(caught.value)


def test_formats_are_told_by_their_first_bytes(tmp_path: Path) -> None:
    for content, kind in (
        (GOOD, "zip"),
        (by_hand.MAGIC, "legacy"),
        (struct.pack("<Q", 2) + b"{}", "safetensors"),
        (b"weights", "unknown"),
    ):
        assert sniff(local(by_hand.write(tmp_path, content))) == kind


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_truncated_file_is_said_to_be(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "whole.pth"
    torch.save(
        {"state_dict": weights("a", "b", "c")}, path, _use_new_zipfile_serialization=not legacy
    )
    content = path.read_bytes()
    for length in np.linspace(0, len(content) - 1, 60, dtype=int):
        cut = by_hand.write(tmp_path, content[:length], "cut.pth")
        with pytest.raises(CheckpointError) as caught:
            read_pytorch(local(cut))
        assert "\n" not in str(caught.value)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["cut.pth", "whole.pth"]


def small_archive() -> bytes:
    return by_hand.archive(
        by_hand.pickled(
            by_hand.dictionary(state_dict=by_hand.dictionary(a=TENSOR, b=TENSOR), epoch=b"K\x03")
        )
    )


def refusal(path: Path) -> str:
    """What our error says of a file, empty where it can be read; other errors pass through."""
    try:
        read_everything(path)
    except CheckpointError as error:
        return str(error)
    return ""


def read_everything(path: Path) -> None:
    file, reader = read_pytorch(local(path))
    entries, spooled = contiguous(file.entries, reader)
    readers = {reader.name: reader} | ({spooled.name: spooled} if spooled else {})
    for entry in entries.values():
        assert len(readers[entry.file].read(entry.offset, entry.size)) == entry.size
    later = read_pytorch_zip(reader, locate=False) if sniff(local(path)) == "zip" else file
    assert isinstance(later, PickledFile)
    for entry in later.entries.values():
        locate_entry(reader, entry)
    find_state_dicts(file.tree, file.name)


flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4)
fuzzing = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzzing
@given(flips=flips)
def test_flipped_bytes_of_an_archive_raise_nothing_but_our_errors(
    tmp_path: Path, flips: list[tuple[float, int]]
) -> None:
    content = bytearray(small_archive())
    for place, value in flips:
        content[int(place * len(content))] = value
    path = by_hand.write(tmp_path, bytes(content))
    assert refusal(path).isprintable()


@fuzzing
@given(flips=flips)
def test_flipped_bytes_of_a_pickle_raise_nothing_but_our_errors(
    tmp_path: Path, flips: list[tuple[float, int]]
) -> None:
    body = by_hand.dictionary(state_dict=by_hand.dictionary(a=TENSOR, b=TENSOR), epoch=b"K\x03")
    content = bytearray(by_hand.pickled(body))
    for place, value in flips:
        content[int(place * len(content))] = value
    path = by_hand.write(tmp_path, by_hand.archive(bytes(content)))
    assert refusal(path).isprintable()


@fuzzing
@given(body=st.binary(max_size=60))
def test_random_instructions_raise_nothing_but_our_errors(tmp_path: Path, body: bytes) -> None:
    path = by_hand.write(tmp_path, by_hand.archive(TENSOR + body + b"."))
    assert refusal(path).isprintable()


@settings(fuzzing, max_examples=150)
@given(flips=flips)
def test_flipped_bytes_of_a_legacy_file_raise_nothing_but_our_errors(
    tmp_path: Path, flips: list[tuple[float, int]]
) -> None:
    path = tmp_path / "old.pth"
    torch.save({"state_dict": weights("a")}, path, _use_new_zipfile_serialization=False)
    content = bytearray(path.read_bytes())
    for place, value in flips:
        content[int(place * len(content))] = value
    assert refusal(by_hand.write(tmp_path, bytes(content))).isprintable()


def test_a_spooled_file_is_closed_with_its_owner() -> None:
    spooled = new_spool("old.pkl")
    assert spooled.append(b"12345678") == 0
    assert spooled.size == 8
    with pytest.raises(CheckpointError, match="truncated"):
        spooled.read(4, 8)
    inner = spooled.file
    del spooled
    assert inner.closed
