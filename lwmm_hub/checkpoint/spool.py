"""Tensors whose bytes are not in place in their file, gathered into an unnamed temporary file."""

from __future__ import annotations

import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO

import numpy as np

from lwmm_hub.checkpoint.entries import DTYPES, ByteReader, TensorEntry, tensor_bytes
from lwmm_hub.checkpoint.zip_archive import data_start, shown
from lwmm_hub.errors import CheckpointError

# of gathered tensors: an expanded tensor (stride 0) of any size can be saved in a few bytes
MAX_EXPANSION = 4  # times the size of the file
ALWAYS_ALLOWED = 2**30  # bytes
PIECE = 4 << 20  # bytes gathered at once
KEPT = 32 << 20  # bytes of a file kept while pieces are made of them


@dataclass(frozen=True, eq=False)
class SpooledFile:
    """An unnamed temporary file, deleted by the system when it is closed or the process ends.

    It stands for a file of a model whose values are unpacked (a pickle of arrays), or is `derived`:
    it holds tensors made of such a file, beside it.
    """

    name: str
    file: IO[bytes]
    derived: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        weakref.finalize(self, self.file.close)

    @property
    def fd(self) -> int:
        """The file descriptor; everything appended can be read from it.

        A reader with an `fd` is read through it, one with a `path` is opened, and one with neither
        is of a file that is not on this machine (`OpenFiles.number`, `can_be_read`).
        """
        return self.file.fileno()

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        with self._lock:
            return self.file.seek(0, 2)

    def append(self, data: bytes | memoryview) -> int:
        """Write `data` at the end; the offset it begins at.

        Raises:
            CheckpointError: the disk of temporary files is full.
        """
        with self._lock:
            offset = self.file.seek(0, 2)
            try:
                self.file.write(data)
                self.file.flush()
            except OSError as error:
                raise CheckpointError(
                    f"{self.name} cannot be unpacked into the folder of temporary files "
                    f"({error.strerror}). Free {len(data)} bytes there, or set TMPDIR to another "
                    "disk."
                ) from None
            return offset

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises:
            CheckpointError: the file ends before.
        """
        with self._lock:
            self.file.seek(offset)
            data = self.file.read(length)
        if len(data) != length:
            raise CheckpointError(
                f"{self.name} ends before byte {offset + length}: it is truncated. Read it again."
            )
        return data

    def close(self) -> None:
        """Close and so delete the file."""
        self.file.close()


def new_spool(name: str) -> SpooledFile:
    """An empty spooled file that stands for the model's file of that name."""
    return SpooledFile(name, tempfile.TemporaryFile())


def derived_spool(name: str) -> SpooledFile:
    """An empty spooled file for tensors that are made of a model's files."""
    return SpooledFile(name, tempfile.TemporaryFile(), derived=True)


def locate_entry(reader: ByteReader, entry: TensorEntry) -> TensorEntry:
    """The entry with an absolute offset; reads 30 bytes where its record was not located yet.

    Raises:
        CheckpointError: the record is not where the directory of the archive says.
    """
    if entry.zip_record is None:
        return entry
    offset = data_start(reader, entry.zip_record) + entry.offset
    if offset + extent_bytes(entry) > reader.size:
        raise CheckpointError(
            f"{reader.name} is damaged or truncated: the tensor {shown(entry.key)} reaches beyond "
            "its end. Download it again."
        )
    return replace(entry, offset=offset, zip_record=None)


def extent_bytes(entry: TensorEntry) -> int:
    """Bytes from the first to the last element of a tensor, both included."""
    if entry.strides is None or 0 in entry.shape:
        return entry.size
    steps = zip(entry.shape, entry.strides, strict=True)
    return (1 + sum((n - 1) * step for n, step in steps)) * DTYPES[entry.dtype][0] // 8


def contiguous(
    entries: Mapping[str, TensorEntry],
    reader: ByteReader,
    spool: Callable[[str], SpooledFile] = derived_spool,
) -> tuple[dict[str, TensorEntry], SpooledFile | None]:
    """The same tensors, all contiguous: those with strides are gathered into a spooled file.

    Entries of the spooled file say so in `file` (the name of the `SpooledFile`); the others are
    returned as they are. No file is made where nothing has strides. Two entries that are one view
    stay one. Values are moved as bytes: nothing is rounded, NaNs keep their payload.

    Raises:
        CheckpointError: the file is damaged, or its tensors would expand beyond bounds.
    """
    views = {_view(entry) for entry in entries.values() if entry.strides is not None}
    total = sum(tensor_bytes(dtype, shape) for _, _, dtype, shape, _ in views)
    if total > max(MAX_EXPANSION * reader.size, ALWAYS_ALLOWED):
        raise CheckpointError(
            f"{reader.name} has {reader.size} bytes, but its expanded tensors need {total}. Save "
            "the state dict again after tensor.contiguous()."
        )
    if not views:
        return dict(entries), None
    spooled = spool(f"{reader.name} (unpacked)")
    places: dict[object, int] = {}
    gathered: dict[str, TensorEntry] = {}
    for key, entry in entries.items():
        if entry.strides is None:
            gathered[key] = entry
            continue
        view = _view(entry)
        if view not in places:
            places[view] = spooled.size
            for piece in _gather(reader, entry):
                spooled.append(piece)
        gathered[key] = replace(
            entry, file=spooled.name, offset=places[view], strides=None, zip_record=None
        )
    return gathered, spooled


_View = tuple[int | None, int, str, tuple[int, ...], tuple[int, ...] | None]


def _view(entry: TensorEntry) -> _View:
    return entry.zip_record, entry.offset, entry.dtype, entry.shape, entry.strides


def _gather(reader: ByteReader, entry: TensorEntry) -> Iterator[bytes]:
    """The elements of a tensor with strides in row-major order, in pieces of a few MiB.

    What a piece is made of is read at once: little where rows lie apart, the whole extent again and
    again where columns do, unless that is short enough to be kept.
    """
    entry = locate_entry(reader, entry)
    item = DTYPES[entry.dtype][0] // 8
    steps = [step * item for step in entry.strides or ()]
    if entry.size <= PIECE or not entry.shape:
        yield _strided(reader.read(entry.offset, extent_bytes(entry)), entry.shape, steps, item)
        return
    first, *rest = entry.shape
    row = replace(entry, shape=tuple(rest), strides=tuple(step // item for step in steps[1:]))
    if row.size > PIECE:
        for i in range(first):
            yield from _gather(reader, replace(row, offset=entry.offset + i * steps[0]))
        return
    extent = extent_bytes(entry)
    kept = reader.read(entry.offset, extent) if extent <= KEPT else None
    rows = max(1, PIECE // max(1, row.size))
    for i in range(0, first, rows):
        count = min(rows, first - i)
        start = i * steps[0]
        length = (count - 1) * steps[0] + extent_bytes(row)
        if kept is None:
            data = memoryview(reader.read(entry.offset + start, length))
        else:
            data = memoryview(kept)[start : start + length]
        yield _strided(data, (count, *rest), steps, item)


def _strided(
    data: bytes | memoryview, shape: Sequence[int], steps: Sequence[int], item: int
) -> bytes:
    values = np.frombuffer(data, dtype=f"u{item}")
    return np.lib.stride_tricks.as_strided(values, shape, steps, writeable=False).tobytes()
