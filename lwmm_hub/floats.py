"""Raw bytes <-> float arrays: the one place that knows how half precisions are widened and rounded.

numpy only. It knows no bfloat16, and converts float16 one element at a time: both directions of
both are done here with integer arithmetic on whole arrays, several times as fast as elsewhere and
equal bit for bit (tests compare them with numpy and ml_dtypes).
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
    """The little-endian numpy dtype of a mergeable safetensors dtype; BF16 as its 16 bits."""
    numpy_name = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}[code]
    dtype: np.dtype[Any] = np.dtype(numpy_name)
    return dtype


def sum_dtype(codes: set[str]) -> np.dtype[Any]:
    """What sums of these dtypes are made in: float32, or float64 where a float64 is among them.

    >>> sum_dtype({"F16", "F32"}).name, sum_dtype({"F32", "F64"}).name
    ('float32', 'float64')
    """
    return np.dtype(np.float64 if "F64" in codes else np.float32)


def view(buffer: bytes | memoryview, code: str, count: int, offset: int = 0) -> NDArray[Any]:
    """The elements of a buffer as stored, not copied."""
    return np.frombuffer(buffer, storage_dtype(code), count, offset)


def doubles(buffer: bytes | memoryview, code: str, count: int) -> NDArray[np.float64]:
    """The elements of a buffer in double precision; exact."""
    found = np.empty(count)
    widen(view(buffer, code, count), code, found)
    return found


def widen(raw: NDArray[Any], code: str, out: Float) -> Float:
    """Write elements as stored into `out`, a float32 or float64 array of the same length; exact."""
    if code == "BF16":
        wide = out if out.dtype == np.float32 else np.empty(len(out), np.float32)
        bits = wide.view(np.uint32)
        np.copyto(bits, raw.view(np.uint16))
        bits <<= _16
        if wide is not out:
            np.copyto(out, wide)
    elif code == "F16" and out.dtype == np.float32:
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
        if code == "BF16":
            near = _to_odd(values) if values.dtype == np.float64 else values
            bits = out.view(np.uint16)
            _narrow_brain(near, bits, np.empty(len(near), np.uint32))
            unknown = np.isnan(values)
            bits[unknown] = np.where(np.signbit(values[unknown]), 0xFFC0, 0x7FC0)
            return int(((bits & 0x7FFF) == 0x7F80).sum()) == _infinities(values)
        np.copyto(out, values, casting="unsafe")
    return code == "F64" or _infinities(out) == _infinities(values)


def narrow_fitting(
    values: Float, code: str, out: NDArray[Any], work: NDArray[np.uint32] | None = None
) -> bool:
    """`narrow` where one pass shows that all values are finite and fit; else False, nothing done.

    That pass is all that is needed for nearly every stretch of a model in half precision. Where
    `work` (room of the same length) is given, it and `values` are overwritten, if that succeeds:
    then no memory is asked of the system.
    """
    if values.dtype != np.float32:
        return False
    if code == "F16":
        if work is None:
            values, work = values.copy(), np.empty(len(values), np.uint32)
        return _narrow_half(values, out.view(np.uint16), work)
    if code != "BF16" or not math.isfinite(_sum_of_squares(values)):
        return False  # squares overflow far below the largest bfloat16
    work = np.empty(len(values), np.uint32) if work is None else work
    _narrow_brain(values, out.view(np.uint16), work)
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


# Scalars of the loops below, made once: to make one takes as long as to use it on 10 000 elements.
_13, _16, _1 = np.uint32(13), np.uint32(16), np.uint32(1)
_HALF_OF_BRAIN = np.uint32(0x7FFF)  # half a last place less one, so that ties go to even
_SIGN_OF_HALF = np.uint32(0x8000)
_KEEP = np.int32(~0x7FFFFFFF | 0x0FFFE000)  # the sign, 5 bits of exponent, 10 of mantissa
_REBIAS = np.float32(2.0**112)  # from an exponent's bias of 15 to one of 127
_NORMAL = np.float32(2.0**-14)  # what is smaller is subnormal in float16
_ROUND = np.uint32((0xFFF - (112 << 23)) & 0xFFFFFFFF)  # half a last place less one, and the bias


def _widen_half(bits: NDArray[np.uint16], out: Float) -> None:
    wide, signed = out.view(np.int32), bits.view(np.int16)
    np.copyto(wide, signed)  # repeats the sign in all bits above
    wide <<= 13
    wide &= _KEEP
    out *= _REBIAS  # exact, subnormals too
    # Infinity and NaN are the largest of their sign as integers: positive ones as int16, negative
    # ones as uint16. They are rare.
    if signed.max(initial=0) >= 0x7C00 or bits.max(initial=0) >= 0xFC00:
        np.copyto(out, bits.view(np.float16))


def _narrow_brain(values: Float, out: NDArray[np.uint16], work: NDArray[np.uint32]) -> None:
    """Finite float32 to bfloat16: the upper half, after adding half a last place of it."""
    _round_off(values.view(np.uint32), _16, _HALF_OF_BRAIN, work)
    np.copyto(out, work, casting="unsafe")


def _round_off(
    bits: NDArray[np.uint32], drop: np.uint32, add: np.uint32, work: NDArray[np.uint32]
) -> None:
    """`bits` without the lowest `drop` ones, to nearest even; `add` is half of what they count."""
    np.right_shift(bits, drop, out=work)
    work &= _1
    work += bits
    work += add
    work >>= drop


def _narrow_half(values: Float, out: NDArray[np.uint16], work: NDArray[np.uint32]) -> bool:
    """Overwrites `values` where it succeeds."""
    size = np.abs(values, out=work.view(np.float32))
    if not size.max(initial=0) < _TOO_LARGE:  # NaN is not less than anything
        return False
    small = np.flatnonzero(size < _NORMAL)
    # adding 0.5 makes the last place of float32 that of a subnormal float16
    subnormal = (size[small] + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F000000)
    # normal numbers: drop 13 bits, to nearest even, and move the bias from 127 to 15
    bits = values.view(np.uint32)
    _round_off(bits, _13, _ROUND, work)
    work[small] = subnormal
    bits >>= _16
    bits &= _SIGN_OF_HALF
    work |= bits
    np.copyto(out, work, casting="unsafe")  # the lower half: sign, 5 bits exponent, 10 mantissa
    return True
