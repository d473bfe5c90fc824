"""The safetensors format: damaged files are refused in one line, sound ones read as the library."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracle import bits
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

import lwmm_hub as lw
from lwmm_hub.checkpoint import DTYPES, TensorEntry
from lwmm_hub.checkpoint.safetensors import read_safetensors, write_header
from lwmm_hub.errors import CheckpointError


class Bytes:
    """A file in memory."""

    name = "model.safetensors"
    derived = False

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        return self.content[offset : offset + length]


def parse(content: bytes) -> dict[str, TensorEntry]:
    return read_safetensors(Bytes(content))[0]


def file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int, stop: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    shape = [(stop - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


SOUND = file({"a": tensor(0, 8), "b": tensor(8, 12)}, b"\0" * 12)
BAD = {
    "empty": (b"", "has 0 bytes and no header"),
    "seven bytes": (b"\0" * 7, "has 7 bytes and no header"),
    "truncated in the header": (SOUND[:30], "its header claims"),
    "truncated in the data": (SOUND[:-1], "its tensors end at byte"),
    "bytes left over": (SOUND + b"\0", "bytes are left over: its tensors end at byte"),
    "header longer than the file": (file({}, length=1000), "its header claims 1000 bytes"),
    "a header of 100 GB": (file({}, b"\0" * 100, length=10**11), "claims 100000000000 bytes"),
    "a header of 2^64 - 1": (file({}, length=2**64 - 1), "its header claims"),
    "a header of 0": (file(b""), "not JSON"),
    "overlapping": (file({"a": tensor(0, 8), "b": tensor(4, 12)}, b"\0" * 12), "'b' overlaps"),
    "the same bytes twice": (file({"a": tensor(0, 8), "b": tensor(0, 8)}, b"\0" * 8), "overlaps"),
    "a gap": (file({"a": tensor(0, 4), "b": tensor(8, 12)}, b"\0" * 12), "'b' leaves a gap"),
    "a gap at the start": (file({"a": tensor(4, 8)}, b"\0" * 8), "'a' leaves a gap"),
    "start after stop": (file({"a": tensor(8, 4, [1])}, b"\0" * 8), "impossible offsets [8, 4]"),
    "negative offsets": (file({"a": tensor(-4, 0, [1])}), "impossible offsets"),
    "three offsets": (file({"a": tensor(0, 4) | {"data_offsets": [0, 2, 4]}}), "impossible off"),
    "no offsets": (file({"a": {"dtype": "F32", "shape": [1]}}), "impossible offsets None"),
    "fractional offsets": (file({"a": tensor(0, 4) | {"data_offsets": [0, 4.0]}}), "impossible"),
    "beyond the file": (file({"a": tensor(0, 400)}, b"\0" * 4), "its tensors end at byte"),
    "a key twice": (file(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":1}'), "twice"),
    "a field twice": (file(b'{"a":{"dtype":"U8","dtype":"U8"}}'), "twice"),
    "another dtype": (file({"a": tensor(0, 4, dtype="F31")}, b"\0" * 4), "unknown dtype 'F31'"),
    "a lower-case dtype": (file({"a": tensor(0, 4, dtype="f32")}, b"\0" * 4), "unknown dtype"),
    "a dtype that is a list": (file({"a": tensor(0, 4, dtype=[])}, b"\0" * 4), "unknown dtype"),
    "no dtype": (file({"a": {"shape": [1], "data_offsets": [0, 4]}}), "unknown dtype None"),
    "too few bytes": (file({"a": tensor(0, 4, [2])}, b"\0" * 4), "not what F32 [2] takes"),
    "a negative shape": (file({"a": tensor(0, 4, [-1])}, b"\0" * 4), "impossible shape [-1]"),
    "a shape of truths": (file({"a": tensor(0, 4, [True])}, b"\0" * 4), "impossible shape"),
    "a shape of numbers": (file({"a": tensor(0, 4, 1)}, b"\0" * 4), "impossible shape 1"),
    "a huge shape": (file({"a": tensor(0, 4, [2**62, 2**62])}, b"\0" * 4), "not what F32 [46"),
    "a size of 2^63": (file({"a": tensor(0, 4, [2**63])}, b"\0" * 4), "impossible shape"),
    "sixty-five axes": (file({"a": tensor(0, 4, [1] * 65)}, b"\0" * 4), "impossible shape"),
    "digits without end": (file(b'{"a":' + b"1" * 6000 + b"}"), "not JSON"),
    "not JSON": (file(b"{'a': 1}"), "its header is not JSON"),
    "deep JSON": (file(b'{"a":' * 3000 + b"1" + b"}" * 3000), "not JSON"),
    "deep lists": (file(b"[" * 100_000), "not JSON"),
    "not UTF-8": (file(b'{"\xff\xfe": 1}'), "its header is not JSON"),
    "a lone surrogate": (
        file(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        "is no text",
    ),
    "a list": (file([]), "its header is not a table"),
    "a number": (file(b"1"), "its header is not a table"),
    "an entry that is a number": (file({"a": 1}), "'a' has no description"),
    "metadata that is a text": (file({"__metadata__": "x"}), "__metadata__ is not a map"),
    "metadata of numbers": (file({"__metadata__": {"a": 1}}), "__metadata__ is not a map"),
    "a key with newlines": (file({"a\nb\n" * 99: 1}), "has no description"),
    "random": (np.random.default_rng(0).bytes(300), "its header claims"),
    "zeros": (b"\0" * 1000, "not JSON"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_damaged_file_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    content, says = BAD[what]
    with pytest.raises(CheckpointError) as caught:
        parse(content)
    message = str(caught.value)
    assert says in message
    assert message.startswith("model.safetensors is not a sound safetensors file")
    assert message.endswith("Download it again, or ask its author for a sound copy.")
    assert len(message) < 500
    assert message.isprintable()
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(lw.LwmmError):
        lw.plan(tmp_path / "model.safetensors", tmp_path / "model.safetensors")


def test_the_sound_file_of_this_table_is_sound() -> None:
    assert list(parse(SOUND)) == ["a", "b"]
    assert parse(file({"__metadata__": {"format": "pt"}})) == {}


FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**65) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),  # noqa: E501
    max_leaves=8,
)  # fmt: skip


@settings(FUZZ, max_examples=300)
@given(st.binary(max_size=80))
@example(b"\x02\0\0\0\0\0\0\0{}")
def test_any_bytes_are_a_file_or_an_error_of_ours(content: bytes) -> None:
    with suppress(CheckpointError):
        parse(content)


@settings(FUZZ, max_examples=400)
@given(
    st.dictionaries(
        st.text(max_size=5) | st.just("__metadata__"),
        json_values
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(sorted(DTYPES)) | json_values,
                "shape": st.lists(st.integers(0, 3), max_size=3) | json_values,
                "data_offsets": st.lists(st.integers(0, 24), min_size=2, max_size=2) | json_values,
            }
        ),
        max_size=3,
    ),
    st.binary(max_size=24),
)
def test_what_we_accept_the_library_accepts_alike(header: dict[str, Any], data: bytes) -> None:
    content = file(header, data)
    try:
        entries = parse(content)
    except CheckpointError:
        return
    known = {"BOOL", "U8", "I8", "U16", "I16", "F16", "U32", "I32", "F32", "U64", "I64", "F64"}
    if {entry.dtype for entry in entries.values()} <= known:
        theirs = load(content)
        assert {k: v.shape for k, v in theirs.items()} == {k: e.shape for k, e in entries.items()}


@settings(FUZZ, max_examples=150)
@given(st.data())
def test_a_sound_file_with_one_byte_changed(data: st.DataObject) -> None:
    """Refused by the library, refused by us; the tensors' places never leave the file."""
    at = data.draw(st.integers(0, len(SOUND) - 13))
    content = bytearray(SOUND)
    content[at] = data.draw(st.integers(0, 255))
    with suppress(CheckpointError):
        entries = parse(bytes(content))
        assert all(0 <= e.offset <= e.offset + e.size <= len(SOUND) for e in entries.values())
        with suppress(SafetensorError):
            load(bytes(content))


arrays = st.builds(
    lambda dtype, shape, seed: np.frombuffer(
        np.random.default_rng(seed).bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype
    ).reshape(shape),
    st.sampled_from(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.integers(0, 99),
)
names = st.text(min_size=1, max_size=9).filter(lambda t: t != "__metadata__" and t.isprintable())


@settings(FUZZ, max_examples=100)
@given(st.dictionaries(names, arrays, max_size=6), st.booleans())
def test_files_of_the_library_are_read_alike(tensors: dict[str, np.ndarray], meta: bool) -> None:
    content = save(tensors, {"format": "pt"} if meta else None)
    reader = Bytes(content)
    entries, metadata = read_safetensors(reader)
    assert metadata == ({"format": "pt"} if meta else {})
    assert entries.keys() == tensors.keys()
    for key, value in tensors.items():
        entry = entries[key]
        assert entry.shape == value.shape
        assert DTYPES[entry.dtype][1] == value.dtype.name
        assert reader.read(entry.offset, entry.size) == bits(value)
    offsets = [entry.offset for entry in entries.values()]
    assert offsets == sorted(offsets)


@settings(FUZZ, max_examples=100)
@given(st.dictionaries(names, arrays, max_size=6))
def test_files_of_ours_are_read_by_the_library_alike(tensors: dict[str, np.ndarray]) -> None:
    codes = {name: code for code, (_, name) in DTYPES.items()}
    listing = [(k, codes[v.dtype.name], v.shape) for k, v in tensors.items()]
    head = write_header(listing, {"format": "pt", "a": "é"})
    content = head + b"".join(bits(v) for v in tensors.values())
    theirs = load(content)
    assert theirs.keys() == tensors.keys()
    for key, value in tensors.items():
        assert theirs[key].dtype == value.dtype
        assert bits(theirs[key]) == bits(value)
    assert len(head) % 8 == 0
    assert parse(content).keys() == tensors.keys()


def test_bfloat16_and_metadata_through_a_file(tmp_path: Path) -> None:
    value = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)
    head = write_header([("x", "BF16", (2, 3))], {"format": "pt"})
    (tmp_path / "x.safetensors").write_bytes(head + bits(value))
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert opened.get_tensor("x").float().tolist() == [[0, 1, 2], [3, 4, 5]]
