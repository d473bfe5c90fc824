"""The safetensors format: an 8-byte length, a JSON header, then the tensors' bytes.

The header is bounded and checked before anything in it is believed: a file is accepted only if its
tensors tile its data exactly, as the format demands
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from lwmm_hub.checkpoint.entries import DTYPES, ByteReader, TensorEntry, tensor_bytes
from lwmm_hub.errors import CheckpointError

MAX_HEADER = 100_000_000  # the reference implementation's own limit
# A header may take many times its length as Python objects: so many of each sign are parsed. The
# one of a model of 200 000 tensors has 200 000 tables, twice as many lists, and 1 600 000 commas.
MAX_SIGNS = {b"{": 400_000, b"[": 1_000_000, b",": 4_000_000}
RESERVED = "__metadata__"  # in a header the name of its metadata, so of no tensor


def read_safetensors(reader: ByteReader) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The tensors of a safetensors file in the order of their bytes, and its metadata.

    Reads the header only.

    Raises:
        CheckpointError: the file is truncated, damaged, or not in this format.
    """
    name, size = reader.name, reader.size
    if size < 8:
        raise CheckpointError(f"{_damaged(name)}: it has {size} bytes and no header. {_AGAIN}")
    (length,) = struct.unpack("<Q", reader.read(0, 8))
    if length > size - 8 or length > MAX_HEADER:
        raise CheckpointError(
            f"{_damaged(name)}: its header claims {length} bytes, the file has {size}. {_AGAIN}"
        )
    header = _parse_header(name, reader.read(8, length))
    metadata = header.pop(RESERVED, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{_damaged(name)}: {RESERVED} is not a map of texts. {_AGAIN}")
    fields = {key: _check_entry(name, key, value) for key, value in header.items()}
    ordered = sorted(fields.items(), key=lambda item: item[1][2:])
    entries, end = {}, 0
    for key, (dtype, shape, start, stop) in ordered:
        if start != end:
            what = "overlaps the tensor before it" if start < end else "leaves a gap before it"
            raise CheckpointError(f"{_damaged(name)}: {_short(key)} {what}. {_AGAIN}")
        entries[key] = TensorEntry(key, dtype, shape, name, 8 + length + start)
        end = stop
    if 8 + length + end != size:
        what = "it is truncated" if 8 + length + end > size else "bytes are left over"
        raise CheckpointError(
            f"{_damaged(name)}: {what}: its tensors end at byte {8 + length + end}, the file at "
            f"{size}. {_AGAIN}"
        )
    return entries, metadata


def write_header(
    tensors: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str]
) -> bytes:
    """The header of a file with these (key, dtype, shape), whose bytes follow in this order.

    Metadata is sorted and nothing depends on time or machine, so equal merges give equal bytes.
    Padded to 8 bytes, so tensors sorted by falling element size are aligned.

    >>> len(write_header([("a", "F32", (2,))], {"format": "pt"})) % 8
    0
    """
    header: dict[str, Any] = {RESERVED: dict(sorted(metadata.items()))}
    end = 0
    for key, dtype, shape in tensors:
        size = tensor_bytes(dtype, tuple(shape))
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


_AGAIN = "Download it again, or ask its author for a sound copy."


def _damaged(name: str) -> str:
    return f"{name} is not a sound safetensors file"


def _short(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 120 else text[:117] + "..."


def _parse_header(name: str, text: bytes) -> dict[str, Any]:
    """The header as a dict; every key once."""
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice.extend(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        return found

    for sign, limit in MAX_SIGNS.items():
        if text.count(sign) > limit:
            raise CheckpointError(
                f"{_damaged(name)}: its header has {text.count(sign)} times {sign.decode()!r}; at "
                f"most {limit} are read. {_AGAIN}"
            )
    try:
        header = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{_damaged(name)}: its header is not JSON. {_AGAIN}") from error
    if twice:
        raise CheckpointError(f"{_damaged(name)}: {_short(twice[0])} stands in it twice. {_AGAIN}")
    if not isinstance(header, dict):
        raise CheckpointError(f"{_damaged(name)}: its header is not a table. {_AGAIN}")
    return header


def _check_entry(name: str, key: str, value: Any) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, start, stop) of one header entry, relative to the data."""
    flaw = _flaw(key, value)
    if flaw is not None:
        raise CheckpointError(f"{_damaged(name)}: {_short(key)} {flaw}. {_AGAIN}")
    start, stop = value["data_offsets"]
    return value["dtype"], tuple(value["shape"]), start, stop


def _flaw(key: str, value: Any) -> str | None:
    """What is wrong with one header entry."""
    if not key.isascii() and any("\ud800" <= letter <= "\udfff" for letter in key):
        return "is no text"  # half of a surrogate pair, which cannot be written again
    if not isinstance(value, dict):
        return "has no description"
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"has the unknown dtype {_short(dtype)}"
    if not _are_sizes(shape) or len(shape) > 64:
        return f"has the impossible shape {_short(shape)}"
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"has the impossible offsets {_short(offsets)}"
    size = offsets[1] - offsets[0]
    if size != tensor_bytes(dtype, tuple(shape)):
        return f"has {size} bytes, which are not what {dtype} {_short(shape)} takes"
    return None


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    if not isinstance(value, list):
        return False
    for number in value:  # noqa: SIM110  # `all` takes twice as long for a few numbers
        if type(number) is not int or not 0 <= number < 1 << 63:
            return False
    return True
