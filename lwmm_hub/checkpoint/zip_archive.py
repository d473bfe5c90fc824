"""The directory of a zip archive as `torch.save` writes it, read by a few bounded ranges.

Nothing a field says is believed before it was compared with the size of the file. Only stored
(uncompressed) records can be read, since only their bytes can be used in place. Checksums are not
compared: `torch.serialization.set_crc32_options(False)` writes files without valid ones.

Layout: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to
4.3.16 (its two ends).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

from lwmm_hub.checkpoint.entries import ByteReader
from lwmm_hub.errors import CheckpointError

TAIL = 64 * 1024  # read first: the ends of the directory, and mostly the directory itself
MAX_DIRECTORY = 32 * 1024 * 1024
MAX_RECORDS = 200_000
_PADDING = 256  # torch pads local headers so that data starts at a multiple of 64

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR_64 = struct.Struct("<4sIQI")
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True)
class ZipRecord:
    """One file of the archive: `header` is the offset of its local header, `size` in bytes.

    `crc32` is what the directory says; it may be invalid.
    """

    name: str
    header: int
    size: int
    stored: bool
    crc32: int = 0


def shown(text: str | bytes | int, limit: int = 120) -> str:
    r"""A name from a file as a message may print it: on one line and never long.

    >>> shown("a\nb")
    "'a\\nb'"
    >>> len(shown("x" * 1000))
    120
    """
    written = repr(text[:limit]) if isinstance(text, str | bytes) else repr(text)
    return written if len(written) <= limit else written[: limit - 3] + "..."


def damaged(name: str, what: str) -> CheckpointError:
    """The error for a file whose bytes contradict each other or end too early."""
    return CheckpointError(f"{name} is damaged or truncated: {what}. Download it again.")


def read_directory(reader: ByteReader) -> dict[str, ZipRecord]:
    """The records of an archive by name, in the order of the central directory.

    Raises:
        CheckpointError: the file is no complete, plain zip archive.
    """
    size = reader.size
    tail_start = max(0, size - TAIL)
    tail = reader.read(tail_start, size - tail_start)
    count, length, start = _directory_extent(reader, tail, tail_start)
    if start >= tail_start:
        directory = tail[start - tail_start : start - tail_start + length]
    else:
        directory = reader.read(start, length)
    records = _parse_directory(reader.name, directory, count)
    _check_layout(reader.name, list(records.values()), start)
    return records


def _directory_extent(reader: ByteReader, tail: bytes, tail_start: int) -> tuple[int, int, int]:
    """(records, bytes, offset) of the central directory."""
    name = reader.name
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise damaged(name, "the directory at the end of its zip archive is missing")
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise damaged(name, "bytes follow the end of its zip archive")
    if disk not in (0, _FULL_16) or first_disk not in (0, _FULL_16) or here != count:
        raise damaged(name, "its zip archive says it is one part of several")
    end = tail_start + at
    if at >= _LOCATOR_64.size and tail[at - _LOCATOR_64.size :].startswith(b"PK\x06\x07"):
        locator = end - _LOCATOR_64.size
        end = _LOCATOR_64.unpack_from(tail, at - _LOCATOR_64.size)[2]
        if end + _END_64.size > locator:
            raise damaged(name, "its zip archive has a wrong zip64 directory")
        if end >= tail_start:
            fields = _END_64.unpack_from(tail, end - tail_start)
        else:
            fields = _END_64.unpack(reader.read(end, _END_64.size))
        wide = (fields[7], fields[8], fields[9])
        if fields[0] != b"PK\x06\x06" or end + 12 + fields[1] != locator or fields[6] != wide[0]:
            raise damaged(name, "its zip archive has a wrong zip64 directory")
        narrow = ((count, _FULL_16), (length, _FULL_32), (start, _FULL_32))
        for (value, full), true in zip(narrow, wide, strict=True):
            if value not in (full, true):
                raise damaged(name, "its zip archive has two directories that disagree")
        count, length, start = wide
    if count > MAX_RECORDS or length > MAX_DIRECTORY:
        raise CheckpointError(
            f"{name} declares a zip directory of {count} records and {length} bytes; at most "
            f"{MAX_RECORDS} records and {MAX_DIRECTORY} bytes are read. Save it in shards."
        )
    if start + length != end:
        raise damaged(name, "the directory of its zip archive is not where it should be")
    return count, length, start


def _parse_directory(name: str, directory: bytes, count: int) -> dict[str, ZipRecord]:
    records: dict[str, ZipRecord] = {}
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(directory):
            raise damaged(name, "the directory of its zip archive ends too early")
        fields = _CENTRAL.unpack_from(directory, at)
        flags, method, packed, size = fields[3], fields[4], fields[8], fields[9]
        name_length, extra_length, comment_length, header = (*fields[10:13], fields[16])
        name_start = at + _CENTRAL.size
        extra_start = name_start + name_length
        at = extra_start + extra_length + comment_length
        if fields[0] != b"PK\x01\x02" or at > len(directory):
            raise damaged(name, "the directory of its zip archive holds something else")
        try:
            record_name = directory[name_start:extra_start].decode("utf-8")
        except UnicodeDecodeError:
            raise damaged(name, "a name in its zip archive is not UTF-8") from None
        if flags & 0x2041:  # encrypted, strongly encrypted, or with a masked directory
            raise CheckpointError(
                f"{name}: the record {shown(record_name)} is encrypted. Save it again without "
                "encryption, with torch.save."
            )
        extra = directory[extra_start : extra_start + extra_length]
        size, packed, header = _widen(name, extra, size, packed, header)
        if record_name in records:
            raise damaged(name, f"its zip archive holds {shown(record_name)} twice")
        stored = method == 0
        if stored and size != packed:
            raise damaged(name, f"its record {shown(record_name)} has two different sizes")
        records[record_name] = ZipRecord(record_name, header, packed, stored, fields[7])
    if at != len(directory):
        raise damaged(name, "the directory of its zip archive is longer than its records")
    return records


def _widen(name: str, extra: bytes, *values: int) -> tuple[int, ...]:
    """(size, packed size, header offset) with the full ones replaced from the zip64 field."""
    if _FULL_32 not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        if tag == 1:
            field = extra[at + 4 : at + 4 + length]
            break
        at += 4 + length
    else:
        raise damaged(name, "its zip archive lacks a zip64 field it refers to")
    wide = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
    try:
        return tuple(next(wide) if value == _FULL_32 else value for value in values)
    except (StopIteration, RuntimeError):
        raise damaged(name, "a zip64 field of its zip archive is too short") from None


def _check_layout(name: str, records: list[ZipRecord], directory_start: int) -> None:
    """Every record ends before the next one, or the directory, begins.

    The length of a local header's own padding is not known here: `data_start` checks it.
    """
    places = sorted((record.header, _least_end(record), record.name) for record in records)
    places.append((directory_start, directory_start, ""))
    for (_, end, record_name), (following, _, _) in pairwise(places):
        if end > following:
            raise damaged(name, f"its record {shown(record_name)} overlaps what follows it")


def _least_end(record: ZipRecord) -> int:
    return record.header + _LOCAL.size + len(record.name.encode("utf-8")) + record.size


def data_start(reader: ByteReader, header: int, expected: str | None = None) -> int:
    """Absolute offset of a record's data, from the local header at `header`.

    Raises:
        CheckpointError: there is no local header, or one of another record than `expected`.
    """
    wanted = b"" if expected is None else expected.encode("utf-8")
    head = reader.read(header, _LOCAL.size + len(wanted))
    return header + _header_length(reader.name, head, wanted)


def _header_length(name: str, head: bytes, wanted: bytes) -> int:
    fields = _LOCAL.unpack_from(head)
    if fields[0] != b"PK\x03\x04":
        raise damaged(name, "a record of its zip archive is not where the directory says")
    if wanted and (fields[9] != len(wanted) or not head[_LOCAL.size :].startswith(wanted)):
        raise damaged(name, f"its record {shown(wanted.decode())} has another name in its header")
    return int(_LOCAL.size + fields[9] + fields[10])


def read_record(reader: ByteReader, record: ZipRecord, limit: int) -> bytes:
    """The data of a stored record of at most `limit` bytes, mostly in one read.

    Raises:
        CheckpointError: the record is compressed, too long, or damaged.
    """
    require_stored(reader.name, record)
    if record.size > limit:
        raise CheckpointError(
            f"{reader.name}: the record {shown(record.name)} has {record.size} bytes; at most "
            f"{limit} are read. Save the state dict alone: torch.save(model.state_dict(), ...)."
        )
    wanted = record.name.encode("utf-8")
    guess = _LOCAL.size + len(wanted) + _PADDING + record.size
    head = reader.read(record.header, min(guess, reader.size - record.header))
    start = _header_length(reader.name, head, wanted)
    if start + record.size <= len(head):
        return head[start : start + record.size]
    if record.header + start + record.size > reader.size:
        raise damaged(reader.name, f"its record {shown(record.name)} reaches beyond its end")
    return reader.read(record.header + start, record.size)


def require_stored(name: str, record: ZipRecord) -> None:
    """Refuse a compressed record, whose bytes cannot be used in place.

    Raises:
        CheckpointError: the record is compressed.
    """
    if not record.stored:
        raise CheckpointError(
            f"{name}: the record {shown(record.name)} is compressed, which torch.save never does. "
            "Load the file with torch and save it again with torch.save."
        )
