"""A network and an image -> probabilities of classes on a grid, with gradients where wanted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.inference import Predictor, memory_watched
from lwmm_hub.evaluation.post_processing import DenseScores, MaskScores, resized_strips

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Image = NDArray[np.uint8]
Predict = Callable[[Any, Image], Any]
Scores = DenseScores | MaskScores


class Net(Protocol):
    """A network that tells scores of pixels."""

    @property
    def name(self) -> str:
        """What to call it in messages."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its classes, in the order of its scores."""
        ...

    @property
    def network(self) -> torch.nn.Module:
        """The module itself."""
        ...

    def scores(self, image: Image, gradients: bool = False) -> Scores:
        """Scores of one image."""
        ...


@dataclass(frozen=True, eq=False)
class LibraryNet:
    """A network of a transformers class, with its image processor."""

    predictor: Predictor

    @property
    def name(self) -> str:
        """What to call it."""
        return self.predictor.name

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its classes."""
        return self.predictor.labels

    @property
    def network(self) -> torch.nn.Module:
        """The module itself."""
        return self.predictor.network

    def scores(self, image: Image, gradients: bool = False) -> Scores:
        """Scores of one image."""
        return self.predictor.segment([image], gradients=gradients)[0]


@dataclass(frozen=True, eq=False)
class OwnNet:
    """A user's own module and how it looks at an image."""

    network: torch.nn.Module
    predict: Predict
    labels: tuple[str, ...]
    name: str

    def scores(self, image: Image, gradients: bool = False) -> Scores:
        """Scores of one image.

        Raises:
            EvaluationError: `predict` gives something else, or memory ran out.
        """
        import torch

        with nullcontext() if gradients else torch.no_grad(), memory_watched(self.name):
            given = self.predict(self.network, image)
        sound = isinstance(given, torch.Tensor) and given.is_floating_point()
        if not sound or given.ndim != 3 or len(given) != len(self.labels):
            shape = tuple(getattr(given, "shape", ()))
            raise EvaluationError(
                f"predict gave {type(given).__name__} of shape {shape} for {self.name}: return its "
                f"scores before any softmax, a float tensor of ({len(self.labels)}, h, w)."
            )
        if gradients and not given.requires_grad:
            raise EvaluationError(
                f"what predict gives for {self.name} has no gradients. Leave torch.no_grad, "
                "inference_mode and detach out of predict."
            )
        size = (image.shape[0], image.shape[1])
        return DenseScores(given, size, (float(given.shape[1]), float(given.shape[2])))


def grid_of(given: Scores) -> tuple[int, int]:
    """Rows and columns of the network's own scores that show the image, at least one each."""
    return max(1, round(given.extent[0])), max(1, round(given.extent[1]))


def log_probabilities(given: Scores, grid: tuple[int, int]) -> Tensor:
    """Logarithms of the class probabilities on a grid over the image, (classes, *grid).

    Differentiable; of masks and classes the semantic map that both make.
    """
    import torch

    dense = given.dense() if isinstance(given, MaskScores) else given
    if dense.scores.shape[1:] == grid and dense.extent == grid:
        wide = dense.scores.dtype == torch.float64
        scores = dense.scores if wide else dense.scores.float()
    else:
        strips = [strip for _, strip in resized_strips(dense.scores, grid, dense.extent)]
        scores = torch.cat(strips, 1)
    if dense.logits:
        return scores.log_softmax(0)
    total = scores.sum(0, keepdim=True)
    return scores.clamp_min(1e-12).log() - total.clamp_min(1e-12).log()
