"""What a network gives -> label maps, probabilities and panoptic maps at the image's own size.

Three things are done otherwise than by transformers' own post-processing: masks are resized from
the network's resolution to the image's in one step (Mask2Former's go over 384 x 384 there), every
panoptic segment has an id of its own (fused stuff collides there), and padding is cut off. Maps
are made in strips of rows, so that 150 classes at 1024 x 2048 take 80 MB and not 1.3 GB.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.evaluation.values import Panoptic, Segment

if TYPE_CHECKING:
    from torch import Tensor

STRIP = 128  # rows
MASK = 0.5  # a pixel is inside a mask from this probability on
OVERLAP = 0.8  # a mask that loses more than the rest to others is no segment (Mask2Former)


@dataclass(frozen=True, eq=False)
class DenseScores:
    """Scores of each class at each place.

    Attributes:
        scores: float, (classes, h, w).
        size: (height, width) of the image.
        extent: the rows and columns of `scores` that show the image; the rest is padding.
        logits: whether a softmax over classes makes them probabilities; else they are sums of
            class times mask probabilities, which are divided by their sum.
    """

    scores: Tensor
    size: tuple[int, int]
    extent: tuple[float, float]
    logits: bool = True

    @property
    def class_count(self) -> int:
        """How many classes there are scores of."""
        return int(self.scores.shape[0])

    def strips(self) -> Iterator[tuple[slice, Tensor]]:
        """Strips of rows from the top: (rows, probabilities of shape (classes, rows, width))."""
        for rows, scores in self._scores():
            yield rows, _probabilities(scores, self.logits)

    def labels(self) -> NDArray[np.uint16]:
        """The likeliest class of each pixel, (height, width)."""
        return _likeliest(self._scores(), self.size)

    def _scores(self) -> Iterator[tuple[slice, Tensor]]:
        return resized_strips(self.scores, self.size, self.extent)


@dataclass(frozen=True, eq=False)
class MaskScores:
    """Queries of a mask classification model (MaskFormer, Mask2Former, OneFormer, EoMT, DETR).

    Attributes:
        classes: logits, (queries, classes + 1); the last is "no object".
        masks: logits, (queries, h, w).
        size: (height, width) of the image.
        extent: the rows and columns of `masks` that show the image; the rest is padding.
    """

    classes: Tensor
    masks: Tensor
    size: tuple[int, int]
    extent: tuple[float, float]

    @property
    def class_count(self) -> int:
        """How many classes there are scores of, "no object" left out."""
        return int(self.classes.shape[-1]) - 1

    def strips(self) -> Iterator[tuple[slice, Tensor]]:
        """As `DenseScores.strips`: class probabilities times mask probabilities, over their sum."""
        for rows, scores in self._scores():
            yield rows, _probabilities(scores, logits=False)

    def labels(self) -> NDArray[np.uint16]:
        """The likeliest class of each pixel, (height, width)."""
        return _likeliest(self._scores(), self.size)

    def dense(self) -> DenseScores:
        """The scores of classes at the resolution of the masks, for averaging over views."""
        classes = self.classes.float().softmax(-1)[:, :-1]
        masks = self.masks.float().sigmoid()
        return DenseScores(_product(classes.T, masks), self.size, self.extent, logits=False)

    def _scores(self) -> Iterator[tuple[slice, Tensor]]:
        classes = self.classes.float().softmax(-1)[:, :-1].T
        for rows, masks in resized_strips(self.masks, self.size, self.extent):
            yield rows, _product(classes, masks.sigmoid())

    def panoptic(
        self, things: Collection[int], threshold: float = 0.8, overlap: float = OVERLAP
    ) -> Panoptic:
        """The panoptic map (Cheng et al., Mask2Former, inference of panoptic segmentation).

        Queries that see an object with more than `threshold` compete for every pixel with class
        times mask probability. A query's pixels are those it wins and covers with at least 0.5;
        what wins less than `overlap` of the mask it covers is dropped. Segments of one stuff class
        are one segment.

        Args:
            things: classes whose objects are told apart.
            threshold: least probability of a query's class.
            overlap: least part of its mask that a query has to win.
        """
        confidence, category = self.classes.float().softmax(-1).max(-1)
        kept = (category < self.classes.shape[-1] - 1) & (confidence > threshold)
        ids = np.zeros(self.size, np.int32)
        count = int(kept.sum())
        if not count:
            return Panoptic(ids, ())
        confidence, masks = confidence[kept], self.masks[kept]
        winner = np.empty(self.size, np.int32)  # of each pixel, counted from 1; 0 is nobody's
        won, covered = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
        for rows, logits in resized_strips(masks, self.size, self.extent):
            inside = logits.sigmoid()
            best = (inside * confidence[:, None, None]).argmax(0)
            sure = inside.gather(0, best[None])[0] >= MASK
            won += np.bincount(best.flatten().cpu().numpy() + 1, minlength=count + 1)
            covered[1:] += (inside >= MASK).sum((1, 2)).cpu().numpy()
            winner[rows] = ((best + 1) * sure).cpu().numpy()
        return _segments(ids, winner, won, covered, category[kept].tolist(), things, overlap)


def _segments(
    ids: NDArray[np.int32],
    winner: NDArray[np.int32],
    won: NDArray[np.int64],
    covered: NDArray[np.int64],
    categories: list[int],
    things: Collection[int],
    overlap: float,
) -> Panoptic:
    """Queries that are left standing as segments, numbered from 1 without gaps."""
    there = np.bincount(winner.ravel(), minlength=len(categories) + 1)
    number = np.zeros(len(categories) + 1, np.int32)
    segments: list[Segment] = []
    stuff: dict[int, int] = {}
    for query, category in enumerate(categories, start=1):
        if not there[query] or won[query] < overlap * covered[query]:
            continue
        if category in stuff:
            number[query] = stuff[category]
            continue
        segments.append(Segment(len(segments) + 1, category))
        number[query] = len(segments)
        if category not in things:
            stuff[category] = len(segments)
    np.take(number, winner, out=ids)
    return Panoptic(ids, tuple(segments))


def resized_strips(
    scores: Tensor, size: tuple[int, int], extent: tuple[float, float]
) -> Iterator[tuple[slice, Tensor]]:
    """Bilinear resizing of the first `extent` of (n, h, w) to `size`, in strips of rows.

    The same numbers as torch's `interpolate(..., mode="bilinear", align_corners=False)` gives for
    an extent of all rows and columns.

    Args:
        scores: of any float dtype; computed in float32.
        size: (height, width) of the result.
        extent: rows and columns to take, may be fractions.

    Yields:
        (rows, their values of shape (n, rows, width)).
    """
    left, right, tx = _neighbours(size[1], extent[1], scores.shape[2], scores)
    top, bottom, ty = _neighbours(size[0], extent[0], scores.shape[1], scores)
    for start in range(0, size[0], STRIP):
        rows = slice(start, min(start + STRIP, size[0]))
        # only the rows that this strip needs are widened, so that a strip is all that is held
        first, last = int(top[rows.start]), int(bottom[rows.stop - 1]) + 1
        block = scores[:, first:last].float()
        wide = block[:, :, left].lerp(block[:, :, right], tx)
        yield (
            rows,
            wide[:, top[rows] - first].lerp(wide[:, bottom[rows] - first], ty[rows, None]),
        )


def _neighbours(length: int, extent: float, there: int, like: Tensor) -> tuple[Any, Any, Any]:
    """For each of `length` places the two samples around it and the way between them."""
    import torch

    # Coordinates in double precision: a float32 scale is off by a pixel's thousandth at 2048.
    last = min(math.ceil(extent), there) - 1  # what lies behind is padding
    place = torch.arange(length, dtype=torch.float64) + 0.5
    place = (place * (extent / length) - 0.5).clamp(0, last)
    low = place.floor().long()
    high = (low + 1).clamp(max=last)
    way = (place - low).float()
    device = like.device
    return low.to(device), high.to(device), way.to(device)


def _product(classes: Tensor, masks: Tensor) -> Tensor:
    """(classes, queries) times (queries, h, w): (classes, h, w)."""
    return (classes @ masks.flatten(1)).reshape(-1, *masks.shape[1:])


def _probabilities(scores: Tensor, logits: bool) -> Tensor:
    if logits:
        return scores.softmax(0)
    return scores / scores.sum(0, keepdim=True).clamp_min(1e-12)


def _likeliest(strips: Iterator[tuple[slice, Tensor]], size: tuple[int, int]) -> NDArray[np.uint16]:
    labels = np.empty(size, np.uint16)
    for rows, scores in strips:
        labels[rows] = scores.argmax(0).cpu().numpy()
    return labels
