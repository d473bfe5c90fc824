"""Raw bytes <-> float arrays: the one place that knows how half precisions are widened and rounded.

numpy only; ml_dtypes is imported where a tensor is bfloat16. numpy converts float16 one element at
a time, so both directions are done here with integer arithmetic on whole arrays, several times as
fast and equal bit for bit (a test compares them).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating[Any]]


@functools.cache
def storage_dtype(code: str) -> np.dtype[Any]:
    """The little-endian numpy dtype of a mergeable safetensors dtype."""
    if code == "BF16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    numpy_name = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[code]
    dtype: np.dtype[Any] = np.dtype(numpy_name)
    return dtype


def sum_dtype(codes: set[str]) -> np.dtype[Any]:
    """What sums of these dtypes are made in: float32, or float64 where a float64 is among them.

    >>> sum_dtype({"F16", "F32"}).name, sum_dtype({"F32", "F64"}).name
    ('float32', 'float64')
    """
    return np.dtype(np.float64 if "F64" in codes else np.float32)


def view(buffer: bytes | memoryview, code: str, count: int, offset: int = 0) -> NDArray[Any]:
    """The elements of a buffer, not copied."""
    return np.frombuffer(buffer, storage_dtype(code), count, offset)


def widen(raw: NDArray[Any], code: str, out: Float) -> Float:
    """Write elements as stored into `out`, a float32 or float64 array of the same length; exact."""
    if code == "F16" and out.dtype == np.float32:
        _widen_half(raw.view(np.uint16), out)
    else:
        np.copyto(out, raw)
    return out


def narrow(values: Float, code: str, out: NDArray[Any]) -> bool:
    """Round float32 or float64 values to nearest even into `out`, elements as stored.

    Returns:
        False where a finite value is too large for the dtype; `out` then holds infinities.
    """
    if code == "F16" and values.dtype == np.float32 and _fits_half(values):
        _narrow_half(values, out.view(np.uint16))
        return True
    with np.errstate(over="ignore"):
        np.copyto(out, values, casting="unsafe")
    return code == "F64" or bool(np.isfinite(out).all() or _infinities(out) == _infinities(values))


def _infinities(values: NDArray[Any]) -> int:
    return int(np.isinf(values).sum())


def all_finite(values: NDArray[Any]) -> bool:
    """Whether there is neither NaN nor infinity; one pass where that is so."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum(dtype=values.dtype))) or bool(np.isfinite(values).all())


def _widen_half(bits: NDArray[np.uint16], out: Float) -> None:
    wide = out.view(np.uint32)
    np.copyto(wide, bits)
    if wide.size and int((bits & np.uint16(0x7FFF)).max()) >= 0x7C00:  # NaN or infinity: rare
        np.copyto(out, bits.view(np.float16))
        return
    sign = wide & np.uint32(0x8000)
    sign <<= np.uint32(16)
    wide &= np.uint32(0x7FFF)
    wide <<= np.uint32(13)
    out *= np.float32(2.0**112)  # moves the exponent's bias from 15 to 127; exact, subnormals too
    wide |= sign


def _fits_half(values: Float) -> bool:
    """Whether all values are finite and round to a finite float16."""
    if not values.size:
        return True
    low, high = float(values.min()), float(values.max())
    return low > -65520.0 and high < 65520.0  # False for NaN


def _narrow_half(values: Float, out: NDArray[np.uint16]) -> None:
    bits = values.view(np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    # normal numbers: drop 13 bits, to nearest even, and move the bias from 127 to 15
    normal = size >> np.uint32(13)
    normal &= np.uint32(1)
    normal += size
    normal += np.uint32((0xFFF - (112 << 23)) & 0xFFFFFFFF)
    normal >>= np.uint32(13)
    small = size < np.uint32(113 << 23)  # under 2^-14: subnormal in float16
    if small.any():
        # adding 0.5 makes the last place of float32 that of a subnormal float16
        tiny = size.view(np.float32) + np.float32(0.5)
        np.copyto(normal, tiny.view(np.uint32) - np.uint32(0x3F000000), where=small)
    normal |= (bits >> np.uint32(16)) & np.uint32(0x8000)
    np.copyto(out, normal, casting="unsafe")
