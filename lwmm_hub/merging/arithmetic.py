"""Make one range of the output: read the models' bytes, add them with their weights, round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.checkpoint import DTYPES, MERGEABLE
from lwmm_hub.errors import MergeError
from lwmm_hub.floats import all_finite, doubles, narrow, narrow_fitting, sum_dtype, view, widen
from lwmm_hub.merging.positional import read_at
from lwmm_hub.merging.segments import Ingredient, OpenFiles, Piece, Range, Segment

BLOCK = 1 << 18  # elements added at once: a MiB of floats; far fewer cost more in calls


class Slot:
    """The buffers of one worker: each model's bytes, float scratch, and where the result goes.

    They stay in the cores' caches, since all ranges of a worker use the same.
    """

    def __init__(self, chunk: int, models: int) -> None:
        self.result = memoryview(b"")
        self._raw: list[memoryview | None] = [None] * models
        self._scratch = [np.empty(BLOCK, np.float64) for _ in range(3)]
        self._chunk = chunk

    def raw(self, model: int, size: int) -> memoryview:
        """Room for the bytes of one model."""
        found = self._raw[model]
        if found is None or len(found) < size:
            found = self._raw[model] = memoryview(bytearray(max(size, self._chunk)))
        return found

    def scratch(self, which: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Room for `count` numbers, at most `BLOCK`."""
        return self._scratch[which].view(dtype)[:count]


class Kitchen(NamedTuple):
    """What every range needs: files, names for messages, whether NaN is allowed."""

    files: OpenFiles
    labels: Sequence[str]
    allow_nonfinite: bool


def make_range(work: Range, slot: Slot, kitchen: Kitchen) -> memoryview:
    """Make one range of the output in `slot.result`.

    Raises:
        MergeError: NaN or infinity in a parent, or a value that the output's dtype cannot hold.
    """
    places = _read_all(work, slot, kitchen)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found in the result
        for piece, raw in zip(work.pieces, places, strict=True):
            _merge_piece(piece, raw, slot, kitchen)
    return slot.result[: work.size]


def _read_all(work: Range, slot: Slot, kitchen: Kitchen) -> list[list[memoryview]]:
    """Read the bytes of all models of a range; neighbours in a file are read in one call.

    The anchor's bytes go straight to their place in the result where they are stored alike.

    Returns:
        per piece, the anchor's buffer and then the donors', each starting at the piece's bytes.
    """
    direct = all(p.segment.anchor.dtype == p.segment.dtype for p in work.pieces)
    runs: dict[int, list[list[int]]] = {}  # model -> [file, offset, size] of what lies side by side
    ends: dict[int, int] = {}  # model -> bytes of it so far
    places: list[list[tuple[int, int]]] = []  # per piece: (model, where its bytes start)
    for piece in work.pieces:
        skip, elements = piece.skip, piece.elements
        row = []
        for file, offset, dtype, _, model in (piece.segment.anchor, *piece.segment.donors):
            width = DTYPES[dtype][0] // 8
            offset, size = offset + skip * width, elements * width
            mine = runs.setdefault(model, [])
            at = ends.get(model, 0)
            row.append((model, at))
            ends[model] = at + size
            if mine and mine[-1][0] == file and mine[-1][1] + mine[-1][2] == offset:
                mine[-1][2] += size
            else:
                mine.append([file, offset, size])
        places.append(row)
    buffers: dict[int, memoryview] = {}
    for model, mine in runs.items():
        rest = buffers[model] = (
            slot.result if model == 0 and direct else slot.raw(model, ends[model])
        )
        for file, offset, size in mine:
            read_at(kitchen.files.descriptors[file], rest[:size], offset)
            rest = rest[size:]
    return [[buffers[model][at:] for model, at in row] for row in places]


def _merge_piece(piece: Piece, raw: Sequence[memoryview], slot: Slot, kitchen: Kitchen) -> None:
    """Make one piece of the result from the models' bytes, block by block."""
    segment, count = piece.segment, piece.elements
    own, donors = segment.anchor, segment.donors
    in_place = raw[0].obj is slot.result.obj
    if own.dtype not in MERGEABLE:
        if not in_place:
            size = count * DTYPES[own.dtype][0] // 8
            slot.result[piece.at : piece.at + size] = raw[0][:size]
        return
    out = view(slot.result, segment.dtype, count, piece.at)
    stored = [view(data, part.dtype, count) for part, data in zip((own, *donors), raw, strict=True)]
    parts = (own, *donors)
    first = 0 if own.weight else max(range(len(parts)), key=lambda i: parts[i].weight)
    others = [i for i, part in enumerate(parts) if i != first and part.weight]
    as_it_is = not donors and segment.computed is None and own.dtype == segment.dtype
    if as_it_is and not in_place:
        np.copyto(out, stored[0])
    real = sum_dtype({own.dtype, segment.dtype, *(d.dtype for d in donors)})
    for start in range(0, count, BLOCK):
        here = slice(start, min(start + BLOCK, count))
        if first and not kitchen.allow_nonfinite:  # the sum does not look at the anchor then
            unseen = _floats(stored[0][here], own.dtype, real, slot, 1)
            if not all_finite(unseen):
                block = Piece(segment, piece.skip + start, len(unseen), piece.at)
                _explain_nonfinite(unseen, block, real, kitchen)
        mine = _floats(stored[first][here], parts[first].dtype, real, slot, 0)
        if segment.computed is not None:
            skip = piece.skip
            mine = segment.computed[skip + here.start : skip + here.stop].astype(real)
        elif others:
            theirs = [(parts[i], stored[i][here]) for i in others]
            mine = _weighted(mine, theirs, real, slot, kitchen.allow_nonfinite)
        room = slot.scratch(1, len(mine), np.dtype(np.uint32))  # what it held is in `mine` now
        if not as_it_is and narrow_fitting(mine, segment.dtype, out[here], room):
            continue
        if not all_finite(mine):
            block = Piece(segment, piece.skip + start, len(mine), piece.at)
            mine = _explain_nonfinite(mine, block, real, kitchen)
        if not as_it_is:
            _store(mine, out[here], segment, piece.skip + start)


def _store(mine: NDArray[Any], out: NDArray[Any], segment: Segment, skip: int) -> None:
    """Round values into the result.

    Raises:
        MergeError: one is too large for the output's dtype.
    """
    if segment.dtype in {"F32", "F64"} and mine.dtype == out.dtype:
        if not np.may_share_memory(mine, out):
            np.copyto(out, mine)
    elif not narrow(mine, segment.dtype, out):
        made = widen(out, segment.dtype, np.empty(len(out)))
        at = int(np.argmin(np.isfinite(made) | ~np.isfinite(mine)))
        raise MergeError(
            f"{segment.key(skip + at)} has a merged value that is too large for "
            f"{DTYPES[segment.dtype][1]}. Pass --dtype float32 (or bfloat16)."
        )


def _floats(
    stored: NDArray[Any], dtype: str, real: np.dtype[Any], slot: Slot, which: int
) -> NDArray[Any]:
    """A model's elements as `real`: themselves where they are stored so."""
    if stored.dtype == real:
        return stored
    return widen(stored, dtype, slot.scratch(which, len(stored), real))


def _weighted(
    mine: NDArray[Any],
    others: Sequence[tuple[Ingredient, NDArray[Any]]],
    real: np.dtype[Any],
    slot: Slot,
    allow_nonfinite: bool,
) -> NDArray[Any]:
    """Take sum of H_i (mine - theta_i) off `mine`, the anchor's or what stands for it; in place."""
    total: NDArray[Any] | None = None
    for part, elements in others:
        theirs = _floats(elements, part.dtype, real, slot, 1 if total is None else 2)
        equal = allow_nonfinite and mine == theirs
        np.subtract(mine, theirs, out=theirs)
        if equal is not False:  # infinity - infinity is no difference
            theirs[equal] = 0
        theirs *= real.type(part.weight)
        if total is None:
            total = theirs
        else:
            total += theirs
    if total is not None:
        np.subtract(mine, total, out=mine)
    return mine


def _explain_nonfinite(
    made: NDArray[Any], piece: Piece, real: np.dtype[Any], kitchen: Kitchen
) -> NDArray[Any]:
    """Name the parent that has NaN or infinity; where none has, a difference overflowed.

    Those elements alone are added again, as sum of H_i theta_i in double precision, so that the
    others do not depend on where a range begins. Where NaN is allowed, elements that a parent has
    not finite stay as they were made.

    Raises:
        MergeError: which parent, which tensor.
    """
    segment, values = piece.segment, []
    if kitchen.allow_nonfinite and segment.computed is not None:
        return made
    sound = np.ones(piece.elements, bool)
    for part in (segment.anchor, *segment.donors):
        width = DTYPES[part.dtype][0] // 8
        buffer = memoryview(bytearray(piece.elements * width))
        descriptor = kitchen.files.descriptors[part.file]
        read_at(descriptor, buffer, part.offset + piece.skip * width)
        values.append(doubles(buffer, part.dtype, piece.elements))
        finite = np.isfinite(values[-1])
        sound &= finite | (not part.weight)
        if not finite.all() and not kitchen.allow_nonfinite:
            at = int(np.argmin(finite))
            what = "NaN" if np.isnan(values[-1][at]) else "infinite values"
            raise MergeError(
                f"{kitchen.labels[part.model]} has {what} in {segment.key(piece.skip + at)}. Use "
                "a sound copy of the model, or pass --allow-nonfinite to merge it all the same."
            )
    parts = (segment.anchor, *segment.donors)
    with np.errstate(over="ignore", invalid="ignore"):
        total = sum(
            part.weight * value
            for part, value in zip(parts, values, strict=True)
            if part.weight  # 0 times infinity is NaN
        )
        result: NDArray[Any] = np.where(np.isfinite(made) | ~sound, made, total).astype(real)
    finite = np.isfinite(result if segment.computed is None else made)
    if not finite.all() and not kitchen.allow_nonfinite:
        key = segment.key(piece.skip + int(np.argmin(finite)))
        raise MergeError(
            f"{key} has merged values beyond the range of {real.name}. Pass --allow-nonfinite to "
            "store them as infinity."
        )
    return result
