"""Write merged weights as a `.pth` file, in the nesting and under the prefixes of the anchor's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lwmm_hub.checkpoint import Checkpoint


def write_pth(path: Path, weights: Path, anchor: Checkpoint) -> None:
    """Save the tensors of the safetensors file `weights` as the anchor's file had them.

    A plain state dict comes back plain; `{"state_dict": {"module.conv.weight": ...}}` gets its
    wrapper and prefix back, and tied tensors are one. Whatever else the anchor's file held
    (optimizer, other copies of the weights) is not the merged model's and is left out. Imports
    torch.
    """
    import torch
    from safetensors.torch import load_file

    torch.save(nested(_tied(load_file(weights), anchor), anchor), path)


def write_parts(folder: Path, weights: Path, anchor: Checkpoint) -> list[Path]:
    """Save each part of the safetensors file `weights` in a file of its own, as the anchor has it.

    Imports torch.
    """
    import torch
    from safetensors.torch import load_file

    tensors = _tied(load_file(weights), anchor)
    paths = []
    for part, file in anchor.part_files.items():
        own = {
            anchor.prefix + key[len(part) + 1 :]: tensors[key]
            for key in anchor.entries
            if key.startswith(f"{part}/")
        }
        paths.append(folder / file)
        torch.save(own, paths[-1])
    return paths


def _tied(tensors: dict[str, Any], anchor: Checkpoint) -> dict[str, Any]:
    """The tensors in the anchor's order; what is one in its file, and still equal, is one again."""
    import torch

    first: dict[object, Any] = {}
    found = {}
    for key, entry in anchor.entries.items():
        other = first.setdefault(entry.place, tensors[key])
        found[key] = other if torch.equal(other, tensors[key]) else tensors[key]
    return found


def nested(tensors: dict[str, Any], anchor: Checkpoint) -> dict[str, Any]:
    """The tensors under the anchor's original keys and wrappers."""
    inner: dict[str, Any] = {}
    for key, tensor in tensors.items():
        part = next((p for p in anchor.parts if key.startswith(f"{p}/")), None)
        if part is None:
            inner[anchor.prefix + key] = tensor
        else:
            inner.setdefault(part, {})[anchor.prefix + key[len(part) + 1 :]] = tensor
    for name in reversed(anchor.path):
        inner = {name: inner}
    return inner
