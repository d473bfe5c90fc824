"""What a weight file holds: the vocabulary shared by all formats.

Names of dtypes are those of the safetensors format (`F32`, `BF16`, `I64`, ...).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from lwmm_hub.errors import CheckpointError

# safetensors dtype -> (bits of one element, the name numpy and torch users know)
DTYPES: dict[str, tuple[int, str]] = {
    "BOOL": (8, "bool"),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "U16": (16, "uint16"),
    "I16": (16, "int16"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "U32": (32, "uint32"),
    "I32": (32, "int32"),
    "F32": (32, "float32"),
    "U64": (64, "uint64"),
    "I64": (64, "int64"),
    "F64": (64, "float64"),
    "C64": (64, "complex64"),
}
DTYPE_CODES = {name: code for code, (_, name) in DTYPES.items()}
MERGEABLE = frozenset({"F64", "F32", "F16", "BF16"})
_AT_ONCE = 1 << 20  # bytes that one call reads whole, in half the time of opening a file object


def dtype_name(code: str) -> str:
    """The usual name of a safetensors dtype.

    >>> dtype_name("BF16")
    'bfloat16'
    """
    return DTYPES[code][1]


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a contiguous tensor.

    >>> tensor_bytes("BF16", (2, 3))
    12
    """
    return math.prod(shape) * DTYPES[dtype][0] // 8


class ByteReader(Protocol):
    """Bytes of one file on demand: a local file, or ranges of a file on the Hub."""

    @property
    def name(self) -> str:
        """What to call the file in a message; never an absolute local path."""

    @property
    def size(self) -> int:
        """Length of the file in bytes."""

    @property
    def derived(self) -> bool:
        """Whether it holds tensors that we made of a model's files, and is none of them."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; CheckpointError where the file ends before."""


@dataclass(frozen=True)
class LocalFile:
    """A file on disk."""

    derived: ClassVar[bool] = False
    path: Path
    name: str

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        return self.path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises:
            CheckpointError: the file ends before.
        """
        if hasattr(os, "pread") and length <= _AT_ONCE:
            descriptor = os.open(self.path, open_flags())
            try:
                data = os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
        else:
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read(length)
        if len(data) != length:
            raise CheckpointError(
                f"{self.name} ends at byte {self.size}, but bytes {offset} to {offset + length} "
                "are asked for: the file is truncated. Download it again."
            )
        return data


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a weight file, without its values.

    `offset` is the absolute byte offset of its first element in `file`. A tensor of a zip archive
    whose local header was not read yet (headers of a file on the Hub) has `zip_record` set to the
    offset of that header, and `offset` counts from the start of the record's data.
    Elements lie contiguous in row-major order, little-endian, unless `strides` (in elements) says
    otherwise. `crc32` is the checksum that a zip archive states for a tensor that fills its record;
    nothing says that it is valid.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    strides: tuple[int, ...] | None = None
    zip_record: int | None = None
    crc32: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the tensor when contiguous."""
        return tensor_bytes(self.dtype, self.shape)

    @property
    def place(self) -> tuple[object, ...]:
        """What tensors that are one, such as tied weights, have in common."""
        return self.file, self.zip_record, self.offset, self.dtype, self.shape, self.strides

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def open_flags() -> int:
    """Flags of `os.open` for reading bytes on every system (Windows would translate newlines)."""
    return os.O_RDONLY | getattr(os, "O_BINARY", 0)
