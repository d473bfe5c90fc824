"""The two binary formats of Xet: xorbs (packed chunks) and shards (which chunks make a file).

Layouts as in huggingface/xet-core: `xet_core_structures/src/xorb_object` and
`metadata_shard/file_structs.rs`. A hash is written as hex with each group of 8 bytes reversed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_CHUNK_HEADER = 8
_RECORD = 48
_FOOTER = b"XETBLOB"
_LAST_FILE = b"\xff" * 32


@dataclass(frozen=True)
class Segment:
    """A run of chunks of one xorb, `start` to `end` (exclusive), and its unpacked length."""

    xorb: str
    start: int
    end: int
    length: int


@dataclass(frozen=True)
class ShardFile:
    """A file of a shard: its segments in order, and its sha256 if the shard tells it."""

    xet_hash: str
    sha256: str | None
    segments: tuple[Segment, ...]


def chunk_offsets(xorb: bytes) -> list[int]:
    """Where each chunk of a serialized xorb starts, and where the last one ends, in bytes."""
    offsets = [0]
    while (start := offsets[-1]) + _CHUNK_HEADER <= len(xorb):
        if xorb.startswith(_FOOTER, start):
            break
        packed = int.from_bytes(xorb[start + 1 : start + 4], "little")
        offsets.append(start + _CHUNK_HEADER + packed)
    return offsets


def unpack_chunks(chunks: bytes) -> Iterator[bytes]:
    """The content of consecutive serialized chunks.

    The header of a chunk: version (1 byte), packed length (3), scheme (1), unpacked length (3).
    """
    start = 0
    while start < len(chunks):
        packed_length = int.from_bytes(chunks[start + 1 : start + 4], "little")
        scheme = chunks[start + 4]
        length = int.from_bytes(chunks[start + 5 : start + 8], "little")
        body = chunks[start + _CHUNK_HEADER : start + _CHUNK_HEADER + packed_length]
        yield _unpack(body, scheme, length)
        start += _CHUNK_HEADER + packed_length


def parse_shard(shard: bytes) -> Iterator[ShardFile]:
    """The files a shard describes.

    After a header of 48 bytes, per file: a record (hash, flags, number of segments), the
    segments, one verification record each (flag bit 31), and one with the sha256 (bit 30).
    """
    position = _RECORD
    while position + _RECORD <= len(shard):
        record = shard[position : position + _RECORD]
        if record.startswith(_LAST_FILE):
            return
        flags, count = _u32(record, 32), _u32(record, 36)
        position += _RECORD
        segments = tuple(
            _parse_segment(shard[start : start + _RECORD])
            for start in range(position, position + count * _RECORD, _RECORD)
        )
        position += count * _RECORD
        if flags >> 31 & 1:
            position += count * _RECORD
        sha256 = None
        if flags >> 30 & 1:
            sha256 = _hash_hex(shard[position : position + 32])
            position += _RECORD
        yield ShardFile(_hash_hex(record[:32]), sha256, segments)


def _parse_segment(record: bytes) -> Segment:
    return Segment(_hash_hex(record[:32]), _u32(record, 40), _u32(record, 44), _u32(record, 36))


def _unpack(body: bytes, scheme: int, length: int) -> bytes:
    """Undo the packing of one chunk: 0 none, 1 LZ4 frame, 2 bytes grouped by 4, then LZ4."""
    if scheme == 0:
        return body
    if scheme == 1:
        return _decompress_lz4(body, length)
    if scheme == 2:
        return _ungroup_bytes(_decompress_lz4(body, length))
    raise ValueError(f"unknown compression scheme {scheme} in a xorb")


def _decompress_lz4(body: bytes, length: int) -> bytes:
    # pyarrow comes with `datasets` and has no type hints, hence the import by name.
    pyarrow = importlib.import_module("pyarrow")
    return bytes(pyarrow.decompress(body, length, codec="lz4", asbytes=True))


def _ungroup_bytes(grouped: bytes) -> bytes:
    """Undo the grouping of bytes by their position modulo 4."""
    source = np.frombuffer(grouped, dtype=np.uint8)
    result = np.empty_like(source)
    start = 0
    for lane in range(4):
        target = result[lane::4]
        target[:] = source[start : start + len(target)]
        start += len(target)
    return result.tobytes()


def _hash_hex(raw: bytes) -> str:
    return "".join(raw[start : start + 8][::-1].hex() for start in range(0, 32, 8))


def _u32(raw: bytes, offset: int) -> int:
    return int.from_bytes(raw[offset : offset + 4], "little")
