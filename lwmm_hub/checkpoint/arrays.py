"""Arrays of numpy in a pickle: what their state says, checked, and their values spooled."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lwmm_hub.checkpoint.entries import LocalFile, TensorEntry, tensor_bytes
from lwmm_hub.checkpoint.rebuilding import (
    Latin1,
    PickledArray,
    PickledDtype,
    Run,
    as_sizes,
    is_contiguous,
    unexpected,
)
from lwmm_hub.checkpoint.spool import ALWAYS_ALLOWED, MAX_EXPANSION, PIECE, new_spool
from lwmm_hub.errors import CheckpointError

# numpy's name of a dtype -> safetensors'
_DTYPES = {
    **{"f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64", "b1": "BOOL"},
    **{f"{kind}{n}": f"{kind.upper()}{8 * n}" for kind in "iu" for n in (1, 2, 4, 8)},
}
_Values = bytes | str | Latin1 | Run


class ArraySpool:
    """The values of a pickle's arrays, copied one behind the other into a spooled file.

    Arrays that have one value in the pickle stay one.
    """

    def __init__(self, file: LocalFile) -> None:
        """For the pickle that a file is."""
        self.name = file.name
        self.file = file
        self.limit = max(MAX_EXPANSION * file.size, ALWAYS_ALLOWED)
        self.spooled = new_spool(file.name)
        self.places: dict[int, tuple[int, _Values]] = {}  # of values, which live as long as this

    def as_entry(self, value: object) -> TensorEntry | None:
        """The tensor that an array is; None for all else, and for arrays that are no numbers.

        Raises:
            CheckpointError: its state contradicts itself, it is big-endian, or there is too much.
        """
        if not isinstance(value, PickledArray):
            return None
        if not isinstance(value.state, tuple) or len(value.state) != 5:
            return None
        _, sizes, kind, turned, values = value.state
        dtype = self.dtype_of(kind)
        if dtype is None:
            return None
        shape = as_sizes(self.name, sizes)
        if not isinstance(values, _Values):
            raise unexpected(self.name, "an array without values")
        if tensor_bytes(dtype, shape) != _length(values):
            raise unexpected(
                self.name, f"an array of shape {shape} and {dtype} in {_length(values)} bytes"
            )
        axes = tuple(range(len(shape)))
        if turned:
            axes, shape = axes[::-1], shape[::-1]
        elif value.axes is not None:
            axes = as_sizes(self.name, value.axes)
        if sorted(axes) != list(range(len(shape))):
            raise unexpected(self.name, "an array whose axes are not those of its shape")
        steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        shape, strides = tuple(shape[axis] for axis in axes), tuple(steps[axis] for axis in axes)
        flat = 0 in shape or is_contiguous(shape, strides)
        place = self.place_of(values)
        return TensorEntry("", dtype, shape, self.name, place, None if flat else strides)

    def dtype_of(self, kind: object) -> str | None:
        """The dtype by its safetensors name; None where an array of it is no tensor.

        Raises:
            CheckpointError: it is big-endian.
        """
        if not isinstance(kind, PickledDtype) or not isinstance(kind.code, str):
            return None
        dtype = _DTYPES.get(kind.code)
        order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "<"
        if dtype is not None and order in (">", b">"):
            raise CheckpointError(
                f"{self.name} holds big-endian arrays. Save it again with them as little-endian: "
                "array.astype(array.dtype.newbyteorder('<'))."
            )
        return dtype

    def place_of(self, values: _Values) -> int:
        """Where the values lie in the spooled file, into which they are copied once.

        Raises:
            CheckpointError: the file would be larger than the pickle explains, or than there is
                room for.
        """
        if id(values) not in self.places or not _length(values):
            if self.spooled.size + _length(values) > self.limit:
                raise CheckpointError(
                    f"{self.name}: its arrays need more than {self.limit} bytes. Save each once."
                )
            self.places[id(values)] = self.spooled.size, values
            for piece in self.pieces(values):
                self.spooled.append(piece)
        return self.places[id(values)][0]

    def pieces(self, values: _Values) -> Iterator[bytes]:
        """The values in pieces of a few MiB."""
        if isinstance(values, Run):
            for done in range(0, values.length, PIECE):
                yield self.file.read(values.offset + done, min(PIECE, values.length - done))
            return
        plain = _plain(values)
        for done in range(0, len(plain), PIECE):
            piece = plain[done : done + PIECE]
            yield piece if isinstance(piece, bytes) else self.encoded(piece)

    def encoded(self, text: str) -> bytes:
        """The bytes that a text stands for.

        Raises:
            CheckpointError: it stands for none.
        """
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError:
            raise unexpected(self.name, "an array whose values are text") from None


def _length(values: _Values) -> int:
    return values.length if isinstance(values, Run) else len(_plain(values))


def _plain(values: bytes | str | Latin1) -> bytes | str:
    return values.text if isinstance(values, Latin1) else values
