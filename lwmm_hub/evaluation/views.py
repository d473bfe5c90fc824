"""One image -> the inputs of a network: whole, or through a window that slides over it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from lwmm_hub.evaluation.post_processing import DenseScores, MaskScores, resized_strips

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class View:
    """One input of the network: a part of one image as it was preprocessed.

    Attributes:
        pixels: (3, h, w).
        place: (top, left) in the image as it was preprocessed.
        extent: (height, width) of what is image; the rest of `pixels` is padding.
        mirrored: whether left and right are changed.
    """

    pixels: Tensor
    place: tuple[int, int]
    extent: tuple[int, int]
    mirrored: bool = False

    def mirror(self) -> View:
        """The same view with left and right changed, padding where it was."""
        width = self.extent[1]
        pixels = self.pixels.clone()
        pixels[:, :, :width] = self.pixels[:, :, :width].flip(-1)
        return replace(self, pixels=pixels, mirrored=True)


def windows(pixels: Tensor, window: tuple[int, int], overlap: float) -> list[View]:
    """Windows that cover an image with equal steps, along each axis at most as long as the image.

    Nothing is padded (as in mmseg): a network takes black around a small image for a part of the
    scene, and scores far less than on the image alone.

    Args:
        pixels: (3, height, width).
        window: (height, width) of each.
        overlap: least part of a window that the next one shows again.
    """
    height, width = pixels.shape[1:]
    views = []
    for top in _starts(height, window[0], overlap):
        for left in _starts(width, window[1], overlap):
            part = pixels[:, top : top + window[0], left : left + window[1]]
            views.append(View(part, (top, left), (part.shape[1], part.shape[2])))
    return views


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin: first at 0, last flush with the end, at most a step apart.

    >>> _starts(2048, 1024, 1 / 3), _starts(100, 128, 0.5), _starts(2048, 1024, 0)
    ([0, 512, 1024], [0], [0, 1024])
    """
    if length <= window:
        return [0]
    count = math.ceil((length - window) / max(1.0, window * (1 - overlap))) + 1
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def together(
    found: Sequence[tuple[View, DenseScores | MaskScores]], size: tuple[int, int]
) -> DenseScores | MaskScores:
    """What several views of one image give: their mean where they overlap.

    One view stays as it is. Logits are averaged as logits (as mmseg does), masks as sums of class
    times mask probabilities.

    Args:
        found: views and what the network gave for each.
        size: (height, width) of the image.
    """
    import torch

    if len(found) == 1 and not found[0][0].mirrored:
        return found[0][1]
    frame = (
        max(view.place[0] + view.extent[0] for view, _ in found),
        max(view.place[1] + view.extent[1] for view, _ in found),
    )
    total: Tensor | None = None
    times: Tensor | None = None
    logits = True
    for view, given in found:
        dense = given.dense() if isinstance(given, MaskScores) else given
        logits = dense.logits
        if total is None or times is None:
            total = torch.zeros((dense.scores.shape[0], *frame), device=dense.scores.device)
            times = torch.zeros(frame, device=dense.scores.device)
        left, right = view.place[1], view.place[1] + view.extent[1]
        for rows, scores in resized_strips(dense.scores, view.extent, dense.extent):
            there = slice(view.place[0] + rows.start, view.place[0] + rows.stop)
            total[:, there, left:right] += scores.flip(-1) if view.mirrored else scores
            times[there, left:right] += 1
    assert total is not None
    assert times is not None
    return DenseScores(total / times, size, frame, logits)


_Item = TypeVar("_Item", bound=tuple[Any, View])


def batches(queue: Sequence[_Item], size: int) -> Iterator[list[_Item]]:
    """Views of one shape, at most `size` together, so that none is padded for another's sake."""
    shapes: dict[tuple[int, ...], list[_Item]] = {}
    for item in queue:
        shapes.setdefault(tuple(item[1].pixels.shape), []).append(item)
    for same in shapes.values():
        for start in range(0, len(same), size):
            yield same[start : start + size]
