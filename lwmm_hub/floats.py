"""Raw bytes <-> float arrays: the one place that knows how half precisions are widened and rounded.

numpy only; ml_dtypes is imported where a tensor is bfloat16. numpy converts float16 one element at
a time, so both directions are done here with integer arithmetic on whole arrays, several times as
fast and equal bit for bit (a test compares them).
"""

from __future__ import annotations

import functools
import math
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
    if narrow_fitting(values, code, out):
        return True
    with np.errstate(over="ignore"):
        if code == "BF16" and values.dtype == np.float64:  # ml_dtypes goes through float32
            np.copyto(out, _to_odd(values), casting="unsafe")
        else:
            np.copyto(out, values, casting="unsafe")
    return code == "F64" or _infinities(out) == _infinities(values)


def narrow_fitting(values: Float, code: str, out: NDArray[Any]) -> bool:
    """`narrow` where one pass shows that all values are finite and fit; else False, nothing done.

    That pass is all that is needed for nearly every stretch of a model in half precision.
    """
    if values.dtype != np.float32:
        return False
    if code == "F16":
        return _narrow_half(values, out.view(np.uint16))
    if code != "BF16" or not math.isfinite(_sum_of_squares(values)):
        return False  # squares overflow far below the largest bfloat16
    np.copyto(out, values, casting="unsafe")
    return True


# the smallest number that float16 rounds to infinity
_TOO_LARGE = np.float32(2.0**16 - 2.0**4)


def _to_odd(values: Float) -> NDArray[np.float32]:
    """float64 as float32, rounded to odd where inexact, so that rounding once more is right."""
    near = values.astype(np.float32)
    wide, bits = near.astype(np.float64), near.view(np.uint32)
    bits -= np.abs(wide) > np.abs(values)  # toward zero
    bits |= wide != values
    return near


def _infinities(values: NDArray[Any]) -> int:
    return int(np.isinf(values).sum())


def all_finite(values: NDArray[Any]) -> bool:
    """Whether there is neither NaN nor infinity; one pass where that is so.

    The sum of squares is finite only then (and is made three times as fast as the sum); where it
    is not, the values themselves say whether it only overflowed.
    """
    return math.isfinite(_sum_of_squares(values)) or bool(np.isfinite(values).all())


def _sum_of_squares(values: NDArray[Any]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.dot(values, values))


def _widen_half(bits: NDArray[np.uint16], out: Float) -> None:
    wide = out.view(np.int32)
    np.copyto(wide, bits.view(np.int16))  # repeats the sign in all bits above
    wide <<= 13
    wide &= np.int32(~0x7FFFFFFF | 0x0FFFE000)
    out *= np.float32(2.0**112)  # moves the exponent's bias from 15 to 127; exact, subnormals too
    if (bits << np.uint16(1)).max(initial=0) >= 0xF800:  # without the sign: NaN or infinity, rare
        np.copyto(out, bits.view(np.float16))


def _narrow_half(values: Float, out: NDArray[np.uint16]) -> bool:
    bits = values.view(np.uint32)
    work = bits << np.uint32(1)  # without the sign, in the order of size; NaN is the largest
    if work.max(initial=0) >= _TOO_LARGE.view(np.uint32) << np.uint32(1):
        return False
    small = np.flatnonzero(work < np.uint32(113 << 24))  # under 2^-14: subnormal in float16
    # normal numbers: drop 13 bits, to nearest even, and move the bias from 127 to 15
    np.right_shift(bits, np.uint32(13), out=work)
    work &= np.uint32(1)
    work += bits
    work += np.uint32((0xFFF - (112 << 23)) & 0xFFFFFFFF)
    work >>= np.uint32(13)
    sign = bits >> np.uint32(16)
    sign &= np.uint32(0x8000)
    work |= sign
    np.copyto(out, work, casting="unsafe")  # the lower half: sign, 5 bits exponent, 10 mantissa
    if small.size:
        # adding 0.5 makes the last place of float32 that of a subnormal float16
        tiny = np.abs(values[small]) + np.float32(0.5)
        out[small] = (tiny.view(np.uint32) - np.uint32(0x3F000000)) | sign[small]
    return True
