"""Weights of `.bin`, `.pth`, `.pt` and `.ckpt` files, without executing anything in them.

Zip archives (PyTorch 1.6 and later) are indexed without torch, by a few reads: their tensors lie
uncompressed and little-endian in the file. Older files, and pickles of numpy arrays (`.pkl`), go
through `legacy`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from lwmm_hub.checkpoint.copies import WRAPPERS, strip_prefix
from lwmm_hub.checkpoint.entries import ByteReader, LocalFile, TensorEntry
from lwmm_hub.checkpoint.layout import PickledFile, lay_out
from lwmm_hub.checkpoint.legacy import read_legacy
from lwmm_hub.checkpoint.rebuilding import Opaque, PickledTensor, Storage, item_bytes
from lwmm_hub.checkpoint.spool import SpooledFile, contiguous, extent_bytes, locate_entry
from lwmm_hub.checkpoint.state_dicts import StateDict, find_state_dicts
from lwmm_hub.checkpoint.unpickling import MAX_PICKLE, load_pickle
from lwmm_hub.checkpoint.zip_archive import (
    ZipRecord,
    damaged,
    data_start,
    read_directory,
    read_record,
    require_stored,
    shown,
)
from lwmm_hub.errors import CheckpointError

__all__ = [
    "WRAPPERS",
    "Opaque",
    "PickledFile",
    "SpooledFile",
    "StateDict",
    "contiguous",
    "find_state_dicts",
    "locate_entry",
    "read_pytorch",
    "read_pytorch_zip",
    "sniff",
    "strip_prefix",
]

_MAX_BYTE_ORDER = 16

Format = Literal["zip", "legacy", "safetensors", "unknown"]


def sniff(reader: ByteReader) -> Format:
    """What the first bytes of a file say it is.

    Raises:
        CheckpointError: it is empty, a Git LFS pointer or a web page, so no weights at all.
    """
    head = reader.read(0, min(reader.size, 512))
    if not head:
        raise CheckpointError(f"{reader.name} is empty. Download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{reader.name} is a Git LFS pointer, not the weights: run `git lfs pull`."
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<!--")):
        raise CheckpointError(
            f"{reader.name} is a web page, not the weights: the download asked for a login or a "
            "confirmation. Open the link in a browser and download the file itself."
        )
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head[257:262] == b"ustar" or (head[0] == 0x80 and head[1:2] <= b"\x05"):
        return "legacy"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= reader.size - 8:
        return "safetensors"
    return "unknown"


def read_pytorch(file: LocalFile) -> tuple[PickledFile, ByteReader]:
    """The tensors of a file on disk, and the reader that holds their bytes.

    Raises:
        UnsafePickleError: it names something that is neither a tensor nor a plain container.
        CheckpointError: it cannot be read as a PyTorch file.
    """
    kind = sniff(file)
    if kind == "zip":
        return read_pytorch_zip(file, locate=True), file
    if kind == "legacy":
        return read_legacy(file)
    if kind == "safetensors":
        raise CheckpointError(
            f"{file.name} is a safetensors file under another name. Rename it to *.safetensors."
        )
    begin = shown(file.read(0, min(8, file.size)))[1:]
    raise CheckpointError(
        f"{file.name} is not a PyTorch file: it begins with {begin}. Pass a file that torch.save "
        "or safetensors wrote."
    )


def read_pytorch_zip(reader: ByteReader, *, locate: bool) -> PickledFile:
    """Index the tensors of a zip archive of `torch.save`; their values are not read.

    Args:
        reader: the file; asked for its end, `data.pkl` and `byteorder` (four reads at most where
            the directory is not within the last 64 KiB and nothing is unusual).
        locate: read the local header of each storage too (30 bytes each), so that offsets are
            absolute. Otherwise entries have `zip_record`, and `locate_entry` finishes one.

    Raises:
        UnsafePickleError: it names something that is neither a tensor nor a plain container.
        CheckpointError: it is damaged, or of a kind that cannot be read (TorchScript, big-endian,
            compressed, no torch file).
    """
    records = read_directory(reader)
    folder = _folder(reader.name, records)
    order = records.get(f"{folder}/byteorder")
    if order is not None and read_record(reader, order, _MAX_BYTE_ORDER) != b"little":
        raise CheckpointError(
            f"{reader.name} was written on a big-endian machine. Save it again on a little-endian "
            "one: torch.save(torch.load(...), ...)."
        )
    pickled = read_record(reader, records[f"{folder}/data.pkl"], MAX_PICKLE)

    def check_storage(storage: Storage) -> None:
        record = records.get(f"{folder}/data/{storage.key}")
        if record is None:
            raise damaged(reader.name, f"the storage {shown(storage.key)} is missing")
        require_stored(reader.name, record)
        declared = storage.count * item_bytes(storage.dtype)
        if declared != record.size:
            raise damaged(
                reader.name,
                f"the storage {shown(storage.key)} has {record.size} bytes, not {declared}",
            )

    root = load_pickle(pickled, reader.name, check_storage)
    starts: dict[str, int] = {}

    def as_entry(value: object) -> TensorEntry | None:
        if not isinstance(value, PickledTensor):
            return None
        record = records[f"{folder}/data/{value.storage.key}"]
        offset = value.offset * item_bytes(value.dtype)
        entry = TensorEntry(
            key="",
            dtype=value.dtype,
            shape=value.shape,
            file=reader.name,
            offset=offset,
            strides=value.strides,
            zip_record=record.header,
        )
        if offset == 0 and entry.strides is None and entry.size == record.size:
            entry = replace(entry, crc32=record.crc32)
        if extent_bytes(entry) + offset > record.size:
            raise damaged(reader.name, f"a tensor reaches beyond {shown(record.name)}")
        if not locate:
            return entry
        if record.name not in starts:
            starts[record.name] = data_start(reader, record.header, record.name)
            if starts[record.name] + record.size > reader.size:
                raise damaged(reader.name, f"{shown(record.name)} reaches beyond its end")
        return replace(entry, offset=starts[record.name] + offset, zip_record=None)

    return lay_out(reader.name, root, as_entry)


def _folder(name: str, records: dict[str, ZipRecord]) -> str:
    """The one top-level folder of the archive, which has `data.pkl`."""
    pickles = [key for key in records if key.count("/") == 1 and key.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{name} is a zip archive, but not one of torch.save: it has {len(pickles)} records "
            "'<name>/data.pkl' instead of one. Pass a file that torch.save wrote."
        )
    folder = pickles[0].removesuffix("/data.pkl")
    if any(key.startswith((f"{folder}/code/", f"{folder}/constants.pkl")) for key in records):
        raise CheckpointError(
            f"{name} is a TorchScript archive, a program with weights inside. Save the weights "
            "alone: torch.save(torch.jit.load(...).state_dict(), ...)."
        )
    return folder
