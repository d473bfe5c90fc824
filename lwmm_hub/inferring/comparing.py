"""Centred cosines between all tensors of one shape in two files, and who belongs to whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.checkpoint import Checkpoint
from lwmm_hub.key_map import Source
from lwmm_hub.relatedness import source_values

THRESHOLD = 0.5
"""The least centred cosine of a match."""

CHANCE = 4.0
"""In units of 1 / sqrt(elements), the spread of a cosine between unrelated tensors."""

MARGIN = 0.05
"""How far the next best partner has to be behind."""

_BLOCK = 1 << 22  # elements of all tensors of a shape that are in memory at a time, as float64
_DIGITS = 6  # so that the last bits of another BLAS decide nothing


@dataclass(frozen=True)
class Found:
    """Two tensors of one shape that are each other's: their places in the two lists."""

    mine: int
    theirs: int
    cosine: float


def needed_cosine(elements: int) -> float:
    """The least cosine that is no chance: small tensors resemble each other by accident.

    >>> needed_cosine(9216), needed_cosine(36), needed_cosine(9) > 1
    (0.5, 0.6666666666666666, True)
    """
    return max(THRESHOLD, CHANCE / math.sqrt(max(elements, 1)))


def centred_cosines(
    anchor: Checkpoint, mine: Sequence[str], donor: Checkpoint, theirs: Sequence[str]
) -> NDArray[np.float64]:
    """(len(mine), len(theirs)) cosines of tensors of one shape after their means are taken off.

    0 where a tensor is constant or holds NaN or infinity. Every element is read once, in blocks of
    32 MiB for all tensors together; sums are made in float64. The first element is taken off
    beforehand: a constant tensor is then exactly zero, and a large mean costs no digits.
    """
    elements = anchor.entries[mine[0]].elements
    rows = [(anchor, Source(key)) for key in mine] + [(donor, Source(key)) for key in theirs]
    n = len(mine)
    sums, squares = np.zeros(len(rows)), np.zeros(len(rows))
    products = np.zeros((n, len(theirs)))
    first = np.zeros((len(rows), 1))
    step = max(_BLOCK // len(rows), 1 << 10)
    with np.errstate(all="ignore"):
        for start in range(0, elements, step):
            block = np.empty((len(rows), min(step, elements - start)))
            for row, (checkpoint, source) in zip(block, rows, strict=True):
                row[:] = source_values(checkpoint, source, start, len(row))
            if not start:
                first = block[:, :1].copy()
            block -= first
            sums += block.sum(axis=1)
            squares += np.einsum("ij,ij->i", block, block)
            products += block[:n] @ block[n:].T
        variances = squares - sums * sums / elements
        variances[~(variances > 1e-12 * squares)] = np.nan
        norms = np.sqrt(variances)
        products -= np.outer(sums[:n], sums[n:]) / elements
        products /= np.outer(norms[:n], norms[n:])
    products[~np.isfinite(products)] = 0.0
    found: NDArray[np.float64] = np.round(products, _DIGITS)
    return found


def assign(cosines: NDArray[np.float64], needed: float) -> tuple[list[Found], list[int]]:
    """The optimal assignment, and the rows that several columns resemble alike.

    Cosines under `needed` count for nothing. A pair whose row or column has another candidate
    nearly as good (within 0.05) is no match: which of them it is would be a guess.
    """
    from scipy.optimize import linear_sum_assignment

    allowed = np.where(cosines >= needed, cosines, 0.0)
    found, unsure = [], []
    for i, j in zip(*linear_sum_assignment(allowed, maximize=True), strict=True):
        if not allowed[i, j]:
            continue
        others = np.concatenate([np.delete(allowed[i], j), np.delete(allowed[:, j], i)])
        if float(others.max(initial=0.0)) > allowed[i, j] - MARGIN:
            unsure.append(int(i))
        else:
            found.append(Found(int(i), int(j), float(allowed[i, j])))
    return found, unsure
