"""Tiny DeepLabV2 models as AdvEnt and its kin save them: names, and values of one lineage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

Values = dict[str, np.ndarray]

WIDTHS = (16, 16, 24, 32)
BRANCHES = range(4)


def shapes(classes: int = 19) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a network with one bottleneck per stage, in the order of registration."""
    found: dict[str, tuple[int, ...]] = {"conv1.weight": (8, 3, 7, 7), **norm("bn1", 8)}
    before = 8
    for stage, width in enumerate(WIDTHS, start=1):
        block, inner = f"layer{stage}.0", width // 4
        found[f"{block}.conv1.weight"] = (inner, before, 1, 1)
        found |= norm(f"{block}.bn1", inner)
        found[f"{block}.conv2.weight"] = (inner, inner, 3, 3)
        found |= norm(f"{block}.bn2", inner)
        found[f"{block}.conv3.weight"] = (width, inner, 1, 1)
        found |= norm(f"{block}.bn3", width)
        found[f"{block}.downsample.0.weight"] = (width, before, 1, 1)
        found |= norm(f"{block}.downsample.1", width)
        before = width
    for layer, width in (("layer5", WIDTHS[2]), ("layer6", WIDTHS[3])):
        for branch in BRANCHES:
            found[f"{layer}.conv2d_list.{branch}.weight"] = (classes, width, 3, 3)
            found[f"{layer}.conv2d_list.{branch}.bias"] = (classes,)
    return found


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (width,) for leaf in leaves} | {f"{name}.num_batches_tracked": ()}


def trained(seed: int, ancestor: int = 0, classes: int = 19) -> Values:
    """A model fine-tuned from the ancestor of that seed: its weights plus a tenth of noise."""
    start, own = np.random.default_rng(ancestor), np.random.default_rng(1000 + seed)
    values: Values = {}
    for key, shape in shapes(classes).items():
        if key.endswith("num_batches_tracked"):
            values[key] = np.array(1000 + seed)
            continue
        scale = 0.03
        first = start.normal(0, scale, shape)
        value = first + own.normal(0, scale / 10, shape)
        values[key] = (np.abs(value) + 0.5 if key.endswith("_var") else value).astype(np.float32)
    return values


def untrained_branches(values: Values, seed: int, branches: tuple[int, ...] = (2, 3)) -> Values:
    """The same with the branches that AdaptSegNet never runs as it initialised them."""
    own = np.random.default_rng(seed)
    changed = dict(values)
    for key, value in values.items():
        if "conv2d_list" in key and int(key.split(".")[2]) in branches:
            changed[key] = own.normal(0, 0.01, value.shape).astype(np.float32)
    return changed


def save(values: Values, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: torch.from_numpy(value) for key, value in values.items()}, path)
    return path
