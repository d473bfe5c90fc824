"""Layers that a model never trained, known by their values where names cannot tell.

AdaptSegNet builds four branches per head, runs two and saves all: the others are still the numbers
they were initialised with, under the very names that AdvEnt and MaxSquare train. The tables say
which layers that may concern and how they are initialised; here the values are asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lwmm_hub.checkpoint import Checkpoint
from lwmm_hub.key_map import KeyMap, SharedParameter
from lwmm_hub.relatedness import parameter_values

MIN_ELEMENTS = 4096
_ERRORS = 4.0  # standard errors within which a moment is that of the initial distribution
_CHUNK = 1 << 18


def find_untrained(
    key_map: KeyMap, checkpoints: Sequence[Checkpoint]
) -> dict[tuple[int, str], str]:
    """(donor, layer) -> why the two models cannot share it: one of them never trained it.

    A weight of at least 4096 elements counts as untrained if its mean, standard deviation and
    fourth moment lie within four standard errors of those of the normal distribution that the table
    names (4.0 * sigma / sqrt(n), sqrt(1 / 2n), sqrt(96 / n)). A bias follows its weight.
    """
    weights: dict[str, SharedParameter] = {
        p.layer: p
        for p in key_map.shared
        if p.layer in key_map.doubtful and math.prod(p.shape) >= MIN_ELEMENTS
    }
    found: dict[tuple[int, str], str] = {}
    for layer, parameter in weights.items():
        sigma = key_map.doubtful[layer]
        why = f"never trained: still normal(0, {sigma:g}) as initialised, in "
        mine = is_initial(parameter, checkpoints, 0, sigma)
        for i in range(1, len(checkpoints)):
            if parameter.sources[i] is None:
                continue
            if mine:
                found[i, layer] = why + checkpoints[0].label
            elif is_initial(parameter, checkpoints, i, sigma):
                found[i, layer] = why + checkpoints[i].label
    return found


def is_initial(
    parameter: SharedParameter, checkpoints: Sequence[Checkpoint], model: int, sigma: float
) -> bool:
    """Whether a tensor's moments are those of normal(0, sigma), to four standard errors."""
    n = math.prod(parameter.shape)
    sums = np.zeros(3)
    for start in range(0, n, _CHUNK):
        values = parameter_values(parameter, checkpoints, model, start, min(_CHUNK, n - start))
        scaled = values.astype(np.float64) / sigma
        with np.errstate(over="ignore", invalid="ignore"):
            sums += (scaled.sum(), (scaled**2).sum(), (scaled**4).sum())
    mean, second, fourth = (float(value) / n for value in sums)
    return (
        abs(mean) <= _ERRORS / math.sqrt(n)
        and abs(math.sqrt(second) - 1) <= _ERRORS / math.sqrt(2 * n)
        and abs(fourth - 3) <= _ERRORS * math.sqrt(96 / n)
    )


def untrained_warnings(found: dict[tuple[int, str], str], scope: str) -> tuple[str, ...]:
    """What was found, one line per reason."""
    layers: dict[str, dict[str, None]] = {}
    for (_, layer), why in found.items():
        layers.setdefault(why, {})[layer] = None
    what = "merged as asked (--scope all)" if scope == "all" else "not merged"
    return tuple(f"{', '.join(names)} {what}: {why}." for why, names in layers.items())
