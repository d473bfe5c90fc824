"""Values for listed tensors: one start per pre-training, and what a training run made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from ..dialects import Entry
from ..neutral import Shape, Values, finetuned, random_value

# pre-trained weights by the systems' READMEs: files of one seed come from one start
MIT, CAFFE, TORCHVISION, MSRA, DEIT, R50_VIT = range(101, 107)

NOISE = 0.3  # of a training run, in standard deviations of each tensor
EMA_NOISE = 0.02  # the moving average is that near to its student


class Trained(NamedTuple):
    """The network of one training run: its list, its values, where they came from."""

    entries: list[Entry]
    values: Values
    start: int
    seed: int


def train(
    entries: Iterable[Entry], start: int, seed: int, untrained: tuple[str, ...] = ()
) -> Trained:
    """The start plus noise of this run; tensors below the `untrained` modules keep their init."""
    entries = list(entries)
    values = {}
    for entry in entries:
        if untrained and entry.key.startswith(untrained):
            values[entry.key] = _deeplab_init(entry, seed)
        elif not entry.parts:  # conv_seg, which NVlabs builds and never runs
            values[entry.key] = _fresh(entry, seed)
        else:
            values[entry.key] = _join(entry, finetuned(ancestor_of(entry, start), seed, NOISE))
        if "cell_anchors" in entry.key:  # boxes in pixels, the same in every run
            values[entry.key] = _anchors(entry.shape)
    return Trained(entries, values, start, seed)


def ancestor_of(entry: Entry, start: int) -> Values:
    """The parts of a tensor before any training; fused ones are equal shares of the rows."""
    shares = len(entry.parts)
    shape = (entry.shape[0] // shares, *entry.shape[1:]) if entry.shape else ()
    return {part: random_value(part, shape, entry.dtype, start) for part in entry.parts}


def moving_average(run: Trained) -> Values:
    """The teacher of the run; its counters and statistics are its own."""
    return finetuned(run.values, run.seed + 1000, EMA_NOISE)


def imagenet_model(run: Trained) -> Values:
    """The network as it was built: the backbone is the start bit for bit, all else is random."""
    return {
        entry.key: _join(entry, ancestor_of(entry, run.start))
        if entry.key.startswith("backbone.")
        else _fresh(entry, run.seed + 2000)
        for entry in run.entries
    }


def _join(entry: Entry, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    pieces = list(parts.values())
    return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def _fresh(entry: Entry, seed: int) -> np.ndarray:
    """Batch norm as torch builds it, everything else random."""
    leaf = entry.key.rpartition(".")[2]
    if leaf in ("running_mean", "running_var", "num_batches_tracked"):
        kind = np.int64 if entry.dtype == "I64" else np.float32
        return np.full(entry.shape, leaf == "running_var", dtype=kind)
    return random_value(entry.key, entry.shape, entry.dtype, seed)


def _deeplab_init(entry: Entry, seed: int) -> np.ndarray:
    """normal(0, 0.01) for weights; biases small, as torch's own start of such wide kernels is."""
    unit = random_value(f"init {entry.key}", entry.shape, entry.dtype, seed)
    if len(entry.shape) == 1:
        return np.float32(0.1) * unit
    return np.float32(0.01) * unit * np.float32(np.sqrt(np.prod(entry.shape[1:])))


def _anchors(shape: Shape) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 16
