"""What inference costs: models side by side, measured so that a busy machine changes little.

On a CPU the clock counts the time that one thread of this process computes, not the time that it
waits while others do; on an accelerator it is the wall's. Models take turns image by image, and of
each image the cheapest round counts, since nothing makes a computation cheaper than it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.inference import memory_watched
from lwmm_hub.evaluation.subjects import Subject

ROUNDS = 7


@dataclass(frozen=True)
class Cost:
    """What one model costs.

    Attributes:
        seconds: for one image, preprocessing and post-processing included: mean over the images of
            the least of all rounds.
        relative: `seconds` over those of the first model.
        spread: the least and the largest ratio to the first model in a single round.
        cpu: whether that is computing time of one thread; else it is time of the wall.
    """

    seconds: float
    relative: float
    spread: tuple[float, float]
    cpu: bool


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
    cpu = sys.platform != "win32" and all(map(_computes_here, subjects))  # its clock is too coarse
    clock: Callable[[], float] = time.process_time if cpu else time.perf_counter
    times = np.empty((len(subjects), rounds, len(images)))
    with _one_thread() if cpu else nullcontext():
        for turn in range(-1, rounds):
            for number, image in enumerate(images):
                order = list(enumerate(subjects))
                for which, subject in order if (turn + number) % 2 else reversed(order):
                    began = clock()
                    with memory_watched(subject.name):
                        subject.predict([image], task)
                    if turn >= 0:
                        times[which, turn, number] = clock() - began
    seconds = times.min(1).mean(1)
    ratios = times.sum(2) / times[0].sum(1)
    return [
        Cost(float(own), float(own / seconds[0]), (float(r.min()), float(r.max())), cpu)
        for own, r in zip(seconds, ratios, strict=True)
    ]


def _computes_here(subject: Subject) -> bool:
    """Whether all of its networks are on the CPU."""
    networks = [getattr(m, "network", None) for m in getattr(subject, "members", (subject,))]
    return all(n is not None and next(n.parameters()).device.type == "cpu" for n in networks)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads wait for each other at full speed, which would count as computing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
