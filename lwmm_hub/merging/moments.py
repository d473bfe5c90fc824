"""Batch-norm statistics of a mixture, computed before anything is streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.checkpoint import Checkpoint
from lwmm_hub.floats import doubles
from lwmm_hub.planning import MergedTensor, MergePlan


def mixture_statistics(
    plan: MergePlan, checkpoints: Sequence[Checkpoint]
) -> dict[str, NDArray[Any]]:
    """Mean and variance of the mixture for every batch norm: mu = sum w mu_i,
    var = sum w (var_i + (mu_i - mu)^2). Small vectors, so they are made whole, in double precision.
    """  # noqa: D205
    found: dict[str, NDArray[Any]] = {}
    by_name = {tensor.name: tensor for tensor in plan.merged}
    for name, mean in by_name.items():
        if mean.statistic != "running_mean" or sum(1 for w in mean.weights if w) < 2:
            continue
        means = _vectors(mean, checkpoints)
        with np.errstate(over="ignore", invalid="ignore"):  # the merge names what is not finite
            mixed = sum(w * v for w, v in zip(mean.weights, means, strict=True) if v is not None)
            found[name] = _exact(mixed, means)
            variance = by_name.get(name.removesuffix("running_mean") + "running_var")
            if variance is None:
                continue
            spreads = _vectors(variance, checkpoints)
            if [s is None for s in spreads] != [m is None for m in means]:
                continue  # of other models than the means: no mixture, so they merge linearly
            mixed_spread = sum(
                w * (s + (m - mixed) ** 2)
                for w, s, m in zip(variance.weights, spreads, means, strict=True)
                if s is not None and m is not None
            )
            found[variance.name] = _exact(mixed_spread, spreads, means)
    return found


def _vectors(
    tensor: MergedTensor, checkpoints: Sequence[Checkpoint]
) -> list[NDArray[np.float64] | None]:
    vectors: list[NDArray[np.float64] | None] = []
    for source, weight, checkpoint in zip(tensor.sources, tensor.weights, checkpoints, strict=True):
        if source is None or not weight:
            vectors.append(None)
            continue
        entry = checkpoint.entries[source.key]
        vectors.append(doubles(checkpoint.read(entry), entry.dtype, entry.elements))
    return vectors


def _exact(mixed: Any, *kinds: Sequence[NDArray[np.float64] | None]) -> NDArray[Any]:
    """The mixture, and exactly the parents' own where all agree in all kinds; of the first kind."""
    there = [[v for v in vectors if v is not None] for vectors in kinds]
    same = np.logical_and.reduce([v == vectors[0] for vectors in there for v in vectors])
    values: NDArray[Any] = np.where(same, there[0][0], mixed)
    return values
