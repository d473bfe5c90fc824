"""Entries of COCO's JSON, read as what they are: nothing is rounded, and "0" is not taken for 1."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from numbers import Real
from typing import Any

LARGEST_ID = 2**31 - 1  # what a map of 32 bits holds; COCO's pictures hold 2**24 - 1


def whole_number(entry: Mapping[str, Any], field: str) -> int:
    """A field that is a whole number.

    >>> whole_number({"id": 7}, "id")
    7

    Raises:
        KeyError: there is no such field.
        ValueError: it is something else; 5.9 is not 5, and 1e400 is no number at all.
    """
    value = entry[field]
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise ValueError(f"{field} is {value!r}, not a whole number")


def yes_or_no(entry: Mapping[str, Any], field: str) -> bool:
    """A field that is 0 or 1; 0 where it is absent or null.

    >>> yes_or_no({"iscrowd": 1}, "iscrowd"), yes_or_no({}, "iscrowd")
    (True, False)

    Raises:
        ValueError: it is something else, as "0", which is no 0.
    """
    value = entry.get(field)
    if value is None:
        return False
    if isinstance(value, str | bytes) or value not in (0, 1):
        raise ValueError(f"{field} is {value!r}, neither 0 nor 1")
    return bool(value)


def box_of(entry: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """The corners of a `bbox`, which is left, top, width, height.

    >>> box_of({"bbox": [1, 2, 3.5, 4]})
    (1.0, 2.0, 4.5, 6.0)

    Raises:
        KeyError: there is none.
        ValueError: it is something else than four numbers, or ends before it begins.
    """
    value = entry["bbox"]
    try:
        left, top, width, height = (_number(part) for part in value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"bbox is {shown(value)}, not left, top, width, height") from error
    if width < 0 or height < 0:
        raise ValueError(f"bbox is {shown(value)}, which ends before it begins")
    return left, top, left + width, top + height


def area_of(entry: Mapping[str, Any]) -> float | None:
    """The `area` of an object in pixels, None where it is absent or null.

    Raises:
        ValueError: it is no number from 0 on.
    """
    value = entry.get("area")
    if value is None:
        return None
    try:
        area = _number(value)
    except ValueError:
        area = -1.0
    if area < 0:
        raise ValueError(f"area is {shown(value)}, no number of pixels")
    return area


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def segment_of(entry: Mapping[str, Any]) -> tuple[int, int, bool]:
    """(id, category_id, iscrowd) of a segment.

    Raises:
        KeyError: id or category_id is absent.
        ValueError: one of them is of another kind, or no map can hold the id.
    """
    number, category = whole_number(entry, "id"), whole_number(entry, "category_id")
    if number < 1:
        raise ValueError(f"id is {number}: below 1 a map is void")
    if number > LARGEST_ID:
        raise ValueError(f"id is {number}, above {LARGEST_ID}")
    return number, category, yes_or_no(entry, "iscrowd")


def shown(entry: object) -> str:
    """An entry in a message, cut to a readable length."""
    text = repr(entry)
    return text if len(text) <= 100 else f"{text[:97]}..."
