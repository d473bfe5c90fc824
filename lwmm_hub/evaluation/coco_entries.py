"""Entries of COCO's JSON, read as what they are: nothing is rounded, and "0" is not taken for 1."""

from __future__ import annotations

import operator
from collections.abc import Mapping
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
