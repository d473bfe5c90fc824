"""Specimens as models, with values that descend from one backbone per family."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from ..neutral import random_value
from .configs import SPECIMENS, Specimen
from .roles import backbone_roles

CLASSES = 19
NOISE = 0.3


@dataclass(frozen=True)
class Built:
    """A specimen, built.

    Attributes:
        name: of the specimen.
        specimen: what it was built from.
        model: the transformers model.
        backbone: role -> name in its state dict, backbone only.
        roles: the same for everything a file of it holds; heads are called `head:` and their
            path, the wrapper taken off.
    """

    name: str
    specimen: Specimen
    model: Any
    backbone: Mapping[str, str]
    roles: Mapping[str, str]

    def shapes(self) -> dict[str, tuple[tuple[int, ...], bool]]:
        """Role -> shape, and whether it is of floats."""
        state = self.model.state_dict()
        return {
            role: (tuple(state[path].shape), state[path].is_floating_point())
            for role, path in self.roles.items()
        }


def build(name: str, classes: int = CLASSES, seed: int = 1) -> Built:
    """A specimen whose values are the family's ancestor with noise that depends on the seed."""
    specimen = SPECIMENS[name]
    model_class = getattr(transformers, specimen.model_class)
    config = model_class.config_class.from_dict({**specimen.config, "num_labels": classes})
    torch.manual_seed(seed)
    built = describe(name, specimen, model_class(config).eval())
    descend(built, seed)
    return built


def describe(name: str, specimen: Specimen, model: nn.Module) -> Built:
    """The roles of a model's tensors."""
    backbone = backbone_roles(model, specimen.walk, specimen.backbone)
    named = set(backbone.values())
    heads = {
        f"head:{_head(path.removeprefix(specimen.wrapper))}": path
        for path in model.state_dict()
        if path not in named
    }
    return Built(name, specimen, model, backbone, {**backbone, **heads})


# BEiT's pyramid in memory -> Data2Vec's, whose modules kept the names that files of both have
PYRAMID = {
    "fpn.fpn1.conv_transpose1.": "fpn1.0.",
    "fpn.fpn1.normalization.": "fpn1.1.",
    "fpn.fpn1.conv_transpose2.": "fpn1.3.",
    "fpn.fpn2.": "fpn2.0.",
}


def _head(path: str) -> str:
    """One role for a tensor of a head that two codes call differently."""
    module = next((name for name in PYRAMID if path.startswith(name)), "")
    return PYRAMID.get(module, "") + path[len(module) :]


def descend(built: Built, seed: int, noise: float = NOISE) -> None:
    """Give every float tensor its ancestor's values with noise, every counter its own count.

    The ancestor's value depends on family, role and shape, the noise also on specimen and seed;
    without noise all models of a family have one backbone. Tables of indices stay.
    """
    ancestor = zlib.crc32(built.specimen.family.encode())
    with torch.no_grad():
        for role, path in built.roles.items():
            tensor = _tensor(built.model, path)
            random = np.random.default_rng([seed, zlib.crc32(f"{built.name} {role}".encode())])
            if path.endswith("num_batches_tracked"):
                tensor.fill_(int(random.integers(1, 1 << 30)))
            if not tensor.is_floating_point():
                continue
            shape = tuple(tensor.shape)
            value = random_value(role, shape, "F32", ancestor)
            spread = float(value.std()) if value.size > 1 else 0.1
            value = value + noise * spread * random.standard_normal(shape)
            if role.endswith("running_var"):
                value = np.maximum(value, 0.1)
            tensor.copy_(torch.from_numpy(np.asarray(value, dtype=np.float32)))


def _tensor(model: nn.Module, path: str) -> torch.Tensor:
    module, _, leaf = path.rpartition(".")
    tensor = getattr(model.get_submodule(module), leaf)
    assert isinstance(tensor, torch.Tensor)
    return tensor
