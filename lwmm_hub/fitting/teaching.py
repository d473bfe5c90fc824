"""What the parents say of images that nobody labelled: their confident labels, kept small.

The teacher's probabilities are the mean of the parents' over the labels that they share by name.
A donor with other labels votes on those that it shares, with the weight of the probability that it
gives them at all; how much goes to the anchor's other classes stays what the anchor says:

    t = (p_anchor + sum_d m_d e_d) / (1 + sum_d m_d)
    e_d(c) = P_anchor(shared with d) q_d(c) / m_d  where d names c,  p_anchor(c) elsewhere
    m_d = sum_c q_d(c)

With the same labels everywhere this is the plain mean.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.label_maps import compared
from lwmm_hub.evaluation.label_spaces import describe
from lwmm_hub.fitting.forwarding import Image, Net, Scores, grid_of, log_probabilities

if TYPE_CHECKING:
    from torch import Tensor

UNSURE = -1  # no confident label


@dataclass(frozen=True)
class Lesson:
    """What the teacher says of one image.

    Attributes:
        image: its number.
        grid: (rows, columns) of the labels.
        packed: uint8 labels of the anchor's classes (uint16 where there are over 256), compressed.
        bits: which of them are confident, a bit each, compressed.
        sure: how many are.
    """

    image: int
    grid: tuple[int, int]
    packed: bytes
    bits: bytes
    sure: int

    def labels(self) -> NDArray[np.int64]:
        """The likeliest class of each place, (rows, columns)."""
        flat = zlib.decompress(self.packed)
        count = self.grid[0] * self.grid[1]
        dtype = np.uint8 if len(flat) == count else np.uint16
        return np.frombuffer(flat, dtype).reshape(self.grid).astype(np.int64)

    def confident(self) -> NDArray[np.int64]:
        """The labels that count, `UNSURE` elsewhere."""
        flat = np.frombuffer(zlib.decompress(self.bits), np.uint8)
        sure = np.unpackbits(flat, count=self.grid[0] * self.grid[1]).astype(bool)
        return np.where(sure.reshape(self.grid), self.labels(), UNSURE)


@dataclass(frozen=True, eq=False)
class Vote:
    """How a donor's classes are told in the anchor's.

    Attributes:
        sums: (anchor's classes, donor's classes), 1 where both are the same.
        shared: bool, (anchor's classes,).
    """

    sums: Tensor
    shared: Tensor


def vote_of(anchor: Sequence[str], donor: Sequence[str], name: str) -> Vote:
    """The classes that a donor shares with the anchor by name.

    Raises:
        EvaluationError: there is none.
    """
    import torch

    mine, theirs = compared(anchor, donor)
    sums = torch.tensor([[float(a == d) for d in theirs] for a in mine])
    if not sums.any():
        raise EvaluationError(
            f"{name} has {describe(donor)}, and the anchor {describe(anchor)}: no name is shared, "
            "so it has no vote. Leave it out, or fit with the anchor as the teacher."
        )
    return Vote(sums, sums.any(1))


def ensemble(anchor: Tensor, donors: Sequence[tuple[Tensor, Vote]]) -> Tensor:
    """The teacher's probabilities (see above).

    Args:
        anchor: probabilities of (classes, rows, columns).
        donors: theirs, on the same grid, with their votes.
    """
    total, weight = anchor.clone(), 1.0
    for theirs, vote in donors:
        heard = (vote.sums.to(theirs) @ theirs.flatten(1)).reshape(anchor.shape)
        mass = heard.sum(0, keepdim=True)
        shared = vote.shared.to(anchor.device)[:, None, None]
        own = (anchor * shared).sum(0, keepdim=True)
        total = total + own * heard + mass * anchor * ~shared
        weight = weight + mass  # type: ignore[assignment]  # a number, then a map
    mean: Tensor = total / weight
    return mean


def _probabilities(net: Net, scores: Scores, grid: tuple[int, int]) -> Tensor:
    """What a parent says of an image.

    Raises:
        EvaluationError: that is not a number everywhere.
    """
    found = log_probabilities(scores, grid).exp()
    if not bool(found.isfinite().all()):
        raise EvaluationError(
            f"{net.name} gives scores that are not finite: it cannot teach. Leave it out; a merge "
            "without --weights fit names the tensor, where its weights hold NaN or infinity."
        )
    return found


def teach(
    nets: Sequence[Net],
    images: Callable[[int], Image],
    numbers: Sequence[int],
    threshold: float,
) -> Iterator[Lesson]:
    """The teacher's labels of images, one after the other, on the grid of the anchor's scores.

    Args:
        nets: the parents, the anchor first; one alone is its own teacher.
        images: number -> image.
        numbers: which images.
        threshold: the teacher's labels count from this probability on.

    Raises:
        EvaluationError: a model tells no finite scores of pixels, or an image cannot be read.
    """
    import torch

    anchor, *donors = nets
    votes = [vote_of(anchor.labels, donor.labels, donor.name) for donor in donors]
    for number in numbers:
        image = images(number)
        with torch.no_grad():
            first = anchor.scores(image)
            grid = grid_of(first)
            found = _probabilities(anchor, first, grid)
            heard = [
                (_probabilities(donor, donor.scores(image), grid).to(found), vote)
                for donor, vote in zip(donors, votes, strict=True)
            ]
            confidence, label = ensemble(found, heard).max(0)
            sure = confidence >= threshold
        kind = np.uint8 if len(found) <= 256 else np.uint16
        packed = zlib.compress(label.cpu().numpy().astype(kind).tobytes(), 1)
        bits = zlib.compress(np.packbits(sure.cpu().numpy()).tobytes(), 1)
        yield Lesson(number, grid, packed, bits, int(sure.sum()))
