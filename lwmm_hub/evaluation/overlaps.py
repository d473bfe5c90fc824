"""Which segments of two panoptic maps share how many pixels, and whether map and list agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.coco_entries import segment_of, shown
from lwmm_hub.evaluation.label_spaces import shorten
from lwmm_hub.evaluation.values import Labels, Segment

_DENSE = 2**22  # pairs of segments that are counted in a table


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of one image, sorted by id.

    Attributes:
        ids: int64, (segments,), above 0.
        categories: int64, (segments,): index of each category.
        crowd: bool, (segments,).
    """

    ids: NDArray[np.int64]
    categories: NDArray[np.int64]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Side:
    """A map, its segments, and whose they are."""

    map: Labels
    segments: Segments
    whose: str


@dataclass(frozen=True, eq=False)
class Overlap:
    """Pixels that true and predicted segments share; 0 is void, k the segment k - 1.

    Attributes:
        true, found, pixels: int64, (pairs,): each pair that shares a pixel, and how many.
        true_area, found_area: int64, (segments,): pixels of each segment.
        on_void: int64, (predicted segments,): pixels of each that the truth leaves void.
    """

    true: NDArray[np.int64]
    found: NDArray[np.int64]
    pixels: NDArray[np.int64]
    true_area: NDArray[np.int64]
    found_area: NDArray[np.int64]
    on_void: NDArray[np.int64]


def sort_segments(
    segments: Sequence[Segment | Mapping[str, Any]], index: Mapping[int, int], whose: str
) -> Segments:
    """Segments by id, with the index of each one's category.

    Args:
        segments: `Segment`, or COCO's dictionaries.
        index: id of a category -> its index.
        whose: "prediction" or "truth", for messages.

    Raises:
        EvaluationError: a segment without id or category, an unknown category, an id twice.
    """
    rows = []
    for segment in segments:
        if isinstance(segment, Segment):
            row = segment.id, segment.category, segment.is_crowd
        else:
            try:
                row = segment_of(segment)
            except (AttributeError, KeyError, TypeError) as error:
                raise EvaluationError(
                    f"{shown(segment)} in the {whose} is no segment. Give id and category_id."
                ) from error
            except ValueError as error:
                raise EvaluationError(
                    f"{shown(segment)} in the {whose} is no segment: {error}. Number them from 1."
                ) from error
        if row[1] not in index:
            raise EvaluationError(
                f"segment {row[0]} of the {whose} has the category {row[1]}, which is not scored. "
                f"Known are {shorten(index)}."
            )
        rows.append((row[0], index[row[1]], row[2]))
    rows.sort()
    ids = np.array([row[0] for row in rows], np.int64)
    if (ids < 1).any() or (np.diff(ids) == 0).any():
        raise EvaluationError(
            f"segments of the {whose} share an id, or have one below 1: {shorten(ids.tolist())}. "
            "Number them from 1."
        )
    return Segments(
        ids,
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], bool),
    )


def overlap(found: Side, true: Side) -> Overlap:
    """Which segments share how many pixels.

    Maps are mostly runs of equal pixels: it is those that are looked up and counted.

    Raises:
        EvaluationError: a map holds no integers, an id without an entry, or lacks one that is
            listed.
    """
    for side in (found, true):
        if side.map.dtype.kind not in "iub":
            raise EvaluationError(
                f"the map of the {side.whose} holds {side.map.dtype} values, not ids of segments."
            )
    a, b = true.map.ravel(), found.map.ravel()
    if a.size:
        begins = np.empty(a.size, bool)
        begins[0] = True
        np.not_equal(a[1:], a[:-1], out=begins[1:])
        begins[1:] |= b[1:] != b[:-1]
        starts = np.flatnonzero(begins)
    else:
        starts = np.zeros(0, np.int64)
    lengths = np.diff(starts, append=a.size)
    rows, columns = _place(a[starts], true), _place(b[starts], found)
    count = len(true.segments.ids) + 1, len(found.segments.ids) + 1
    keys = rows * count[1] + columns
    if count[0] * count[1] <= _DENSE:
        sums = np.bincount(keys, lengths, count[0] * count[1])
        keys = np.flatnonzero(sums)
        sums = sums[keys]
    else:
        keys, place = np.unique(keys, return_inverse=True)
        sums = np.bincount(place, lengths)
    pixels = sums.astype(np.int64)  # float64 adds whole numbers exactly up to 2**53
    row, column = np.divmod(keys, count[1])
    areas = [np.zeros(n, np.int64) for n in (*count, count[1])]
    np.add.at(areas[0], row, pixels)
    np.add.at(areas[1], column, pixels)
    np.add.at(areas[2], column[row == 0], pixels[row == 0])
    for side, area in ((true, areas[0]), (found, areas[1])):
        absent = side.segments.ids[area[1:] == 0].tolist()
        if absent:
            raise EvaluationError(
                f"the {side.whose} lists the segments {shorten(absent)}, which have no pixel in "
                "its map. Leave them out, or look whether map and list are of one image."
            )
    return Overlap(row, column, pixels, *(area[1:] for area in areas))


def _place(values: Labels, side: Side) -> NDArray[np.int64]:
    """0 for void, 1 and up for segments in order of their ids."""
    ids = np.concatenate([np.zeros(1, np.int64), side.segments.ids])
    wide = values.astype(np.int64)
    place = np.searchsorted(ids, wide)
    unknown = ids[np.minimum(place, len(ids) - 1)] != wide
    if unknown.any():
        raise EvaluationError(
            f"the map of the {side.whose} holds {shorten(np.unique(wide[unknown]).tolist())}, for "
            "which it lists no segment. 0 is void; every other id needs an entry."
        )
    return place
