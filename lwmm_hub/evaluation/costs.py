"""What inference costs: models side by side, so that a busy machine is busy for all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.inference import memory_watched
from lwmm_hub.evaluation.subjects import Subject

ROUNDS = 5


@dataclass(frozen=True)
class Cost:
    """What one model costs.

    Attributes:
        seconds: median for one image, preprocessing and post-processing included.
        relative: to the first model: median of the ratios on the same image in the same round.
    """

    seconds: float
    relative: float


def measure_costs(
    subjects: Sequence[Subject],
    images: Sequence[NDArray[np.uint8]],
    task: str,
    rounds: int = ROUNDS,
) -> list[Cost]:
    """Time every subject on every image, one image of each in turn, forwards and backwards.

    Args:
        subjects: all of them loaded; the first is what the others are compared with.
        images: uint8 RGB, (height, width, 3).
        task: what is predicted.
        rounds: how often all images are looked at; one more before them warms up.

    Returns:
        One cost for each subject.

    Raises:
        EvaluationError: there is no image, or memory ran out.
    """
    if not images:
        raise EvaluationError("there is no image to measure the speed with. Name another split.")
    times = np.empty((len(subjects), rounds, len(images)))
    for turn in range(-1, rounds):
        for number, image in enumerate(images):
            order = list(enumerate(subjects))
            for which, subject in order if (turn + number) % 2 else reversed(order):
                began = time.perf_counter()
                with memory_watched(subject.name):
                    subject.predict([image], task)
                if turn >= 0:
                    times[which, turn, number] = time.perf_counter() - began
    ratios = times / times[0]
    return [
        Cost(median(own.ravel().tolist()), median(ratio.ravel().tolist()))
        for own, ratio in zip(times, ratios, strict=True)
    ]
