"""What a training asks of the target's unlabelled images: one loss for each strategy.

Each is the idea of its paper at toy scale, not its recipe: weights and schedules are ours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Logits = Callable[[Tensor], Tensor]  # pixels (n, 3, h, w) -> logits (n, classes, h/4, w/4)


@dataclass
class Batch:
    """One step's images.

    Attributes:
        source: pixels with labels, (n, 3, h, w).
        labels: of the source, (n, h/2, w/2).
        source_logits: of the model, (n, classes, h/4, w/4), with gradient.
        target: pixels without labels, (n, 3, h, w).
        class_weights: of the loss, (classes,): rare classes count more.
    """

    source: Tensor
    labels: Tensor
    source_logits: Tensor
    target: Tensor
    class_weights: Tensor


def cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor, pixel_weights: Tensor | None = None
) -> Tensor:
    """At half the image's size, twice the logits': a finer loss costs more and teaches no more."""
    large = functional.interpolate(logits, size=labels.shape[1:], mode="bilinear")
    each = functional.cross_entropy(large, labels, class_weights, reduction="none")
    return (each if pixel_weights is None else each * pixel_weights).mean()


class SourceOnly:
    """No adaptation."""

    def __init__(self, model: nn.Module, logits: Logits, classes: int, steps: int) -> None:
        self.model, self.logits, self.classes, self.steps = model, logits, classes, steps

    def loss(self, batch: Batch, step: int) -> Tensor:
        return batch.source_logits.new_zeros(())

    def ramp(self, step: int) -> float:
        """From nothing to 1 over the first third: first the model must know the source."""
        return min(1.0, step / (self.steps / 3))

    def after(self, step: int) -> None:
        """Called when the model's weights have changed."""


class MinimumEntropy(SourceOnly):
    """Predictions on the target shall be sure (MinEnt, Vu et al. 2019)."""

    WEIGHT = 0.05

    def loss(self, batch: Batch, step: int) -> Tensor:
        information = _information(self.logits(batch.target))
        return self.ramp(step) * self.WEIGHT * information.sum(1).mean()


class MaximumSquares(SourceOnly):
    """As minimum entropy, with a gradient that does not favour easy pixels (Chen et al. 2019)."""

    WEIGHT = 0.1

    def loss(self, batch: Batch, step: int) -> Tensor:
        probabilities = self.logits(batch.target).softmax(1)
        return -self.ramp(step) * self.WEIGHT * probabilities.square().sum(1).mean() / 2


class Adversarial(SourceOnly):
    """A discriminator shall not tell the outputs' information maps apart (AdvEnt)."""

    WEIGHT, RATE = 0.02, 5e-4

    def __init__(self, model: nn.Module, logits: Logits, classes: int, steps: int) -> None:
        super().__init__(model, logits, classes, steps)
        widths = (classes, 16, 32, 32)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.critic = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))
        self.optimizer = torch.optim.Adam(self.critic.parameters(), self.RATE, betas=(0.9, 0.99))
        self._seen: tuple[Tensor, Tensor] | None = None

    def loss(self, batch: Batch, step: int) -> Tensor:
        source = _information(batch.source_logits).detach()
        target = _information(self.logits(batch.target))
        self._seen = source, target.detach()
        for parameter in self.critic.parameters():  # the segmenter's step teaches it nothing
            parameter.requires_grad_(False)
        return self.ramp(step) * self.WEIGHT * _told(self.critic(target), 1.0)

    def after(self, step: int) -> None:
        assert self._seen is not None
        for parameter in self.critic.parameters():
            parameter.requires_grad_(True)
        source, target = self._seen
        loss = _told(self.critic(source), 1.0) + _told(self.critic(target), 0.0)
        self.optimizer.zero_grad()
        (loss / 2).backward()
        self.optimizer.step()


class SelfTraining(SourceOnly):
    """A mean teacher's labels on mixed images (DACS and DAFormer, without their extras)."""

    MOMENTUM, SURE = 0.99, 0.8

    def __init__(self, model: nn.Module, logits: Logits, classes: int, steps: int) -> None:
        super().__init__(model, logits, classes, steps)
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)

    def loss(self, batch: Batch, step: int) -> Tensor:
        if self.ramp(step) < 0.5:  # a teacher that knows nothing yet
            return super().loss(batch, step)
        size = batch.labels.shape[1:]
        with torch.no_grad():
            guessed = functional.interpolate(
                self.teacher(batch.target).logits, size=size, mode="bilinear"
            ).softmax(1)
            sure, labels = guessed.max(1)
        weight = float((sure > self.SURE).float().mean())
        pasted = self._classes_to_paste(batch.labels)
        labels = torch.where(pasted, batch.labels, labels)
        finer = pasted.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
        mixed = torch.where(finer, batch.source, batch.target)
        logits = self.logits(_recoloured(mixed))
        return cross_entropy(logits, labels, batch.class_weights, torch.where(pasted, 1.0, weight))

    def _classes_to_paste(self, labels: Tensor) -> Tensor:
        """Pixels of half of each source image's classes, (n, h, w)."""
        masks = []
        for one in labels:
            there = one.unique()
            chosen = there[torch.randperm(len(there))[: len(there) // 2]]
            masks.append(torch.isin(one, chosen))
        return torch.stack(masks)

    def after(self, step: int) -> None:
        momentum = min(self.MOMENTUM, 1 - 1 / (step + 1))
        with torch.no_grad():
            pairs = zip(
                self.teacher.state_dict().values(), self.model.state_dict().values(), strict=True
            )
            for old, new in pairs:
                if old.is_floating_point():
                    old.lerp_(new, 1 - momentum)
                else:
                    old.copy_(new)


def _information(logits: Tensor) -> Tensor:
    """-p log p of each class, (n, classes, h, w); its sum over classes is 1 where all is open."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs) / math.log(logits.shape[1])


def _told(found: Tensor, truth: float) -> Tensor:
    return functional.binary_cross_entropy_with_logits(found, torch.full_like(found, truth))


def _recoloured(pixels: Tensor) -> Tensor:
    """Other contrast, brightness and tint for each image."""
    count = len(pixels)
    contrast = torch.empty(count, 1, 1, 1).uniform_(0.7, 1.3)
    tint = torch.empty(count, 3, 1, 1).uniform_(-0.4, 0.4)
    return pixels * contrast + tint


STRATEGIES: dict[str, Any] = {
    "source only": SourceOnly,
    "minimum entropy": MinimumEntropy,
    "maximum squares": MaximumSquares,
    "adversarial": Adversarial,
    "self-training": SelfTraining,
}
