"""What the study varies: options of a fit, and changes that the tool does not offer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from report import DEFAULT

from lwmm_hub.evaluation.post_processing import DenseScores
from lwmm_hub.fitting.teaching import Lesson, teach
from lwmm_hub.fitting.training import Course

Image = NDArray[np.uint8]
WIDTH = 3.0  # layers: standard deviation of the window that smooths over depth


class SmoothCourse(Course):
    """Offsets of neighbouring layers are averaged, so the weights change slowly with depth."""

    def weights(self, offsets: torch.Tensor) -> torch.Tensor:
        """Layer weights, (layers, models)."""
        each = offsets[self._knot_of]
        place = torch.arange(len(each), dtype=each.dtype)
        window = torch.exp(-0.5 * ((place[:, None] - place) / WIDTH) ** 2)
        return (self._logits + (window / window.sum(1, keepdim=True)) @ each).softmax(1)


class ColourCourse(Course):
    """What is learned from is shown in other light: brightness, contrast and each colour shifted.

    The teacher has seen the images as they are, so the network learns to say the same of both.
    """

    def _loss(self, lesson: Lesson, flip: bool, gradients: bool = True) -> torch.Tensor:
        read = self._read
        if gradients:
            self._read = lambda number: shifted(read(number), self.random)
        try:
            return super()._loss(lesson, flip, gradients)
        finally:
            self._read = read

    @property
    def random(self) -> np.random.Generator:
        """The same in each fit of a seed."""
        if not hasattr(self, "_random"):
            self._random = np.random.default_rng(self.options.seed)
        return self._random


def shifted(image: Image, random: np.random.Generator) -> Image:
    """An image in other light: as a whole, in each colour and in contrast up to a quarter more."""
    values = image * (random.uniform(0.8, 1.25) * random.uniform(0.8, 1.25, 3))
    middle = values.mean()
    changed = (values - middle) * random.uniform(0.8, 1.25) + middle
    return np.clip(changed, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class _BothWays:
    """A parent that answers with the mean of what it says of an image and of its mirror image."""

    net: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def scores(self, image: Image, gradients: bool = False) -> DenseScores:
        """Scores of one image."""
        found = self.net.scores(image, gradients)
        assert found.logits
        assert found.extent == tuple(found.scores.shape[1:])  # nothing that a mirror would move
        other = self.net.scores(np.ascontiguousarray(image[:, ::-1]), gradients)
        mean = (found.scores.softmax(0) + other.scores.softmax(0).flip(-1)) / 2
        return replace(found, scores=mean.clamp_min(1e-9).log())


def teach_both_ways(nets: Sequence[Any], *rest: Any) -> Iterator[Lesson]:
    """`teach`, by parents that look at each image and at its mirror image."""
    return teach([_BothWays(net) for net in nets], *rest)


VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "fit, pixels count alike": {"balance": 0.0},
    "fit, classes count by the root": {"balance": 0.5},
    "fit, all labels count": {"threshold": 0.0},
    "fit, threshold 0.6": {"threshold": 0.6},
    "fit, threshold 0.9": {"threshold": 0.9},
    "fit, anchor teaches": {"teacher": "anchor"},
    "fit, teacher looks both ways": {"teach": teach_both_ways},
    "fit, mirrored images": {"mirror": True},
    "fit, images in other light": {"Course": ColourCourse},
    "fit, smooth over depth": {"Course": SmoothCourse},
    "fit, one offset a stage": {"per": "stage"},
    "fit, started uniform": {"start": "uniform"},
    "fit, lr 0.02": {"lr": 0.02},
    "fit, lr 0.1": {"lr": 0.1},
    "fit, 20 steps": {"steps": 20},
    "fit, 120 steps": {"steps": 120},
}


@contextmanager
def varied(name: str) -> Iterator[Mapping[str, Any]]:
    """The options of a variant; what is no option is changed in the tool until the end."""
    options = dict(VARIANTS[name])
    changed = {key: options.pop(key) for key in ("Course", "teach") if key in options}
    with patch.multiple("lwmm_hub.fitting.running", **changed) if changed else nullcontext():
        yield options
