"""An opened checkpoint -> `Predictor`: the weights that were named, whatever lies beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lwmm_hub.checkpoint import Checkpoint, LocalFile, dtype_name
from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.inference import InferenceOptions, Predictor
from lwmm_hub.small_files import read_small

if TYPE_CHECKING:
    import torch

_MAX_INDEX = 64 << 20  # bytes


def predictor_of(
    checkpoint: Checkpoint, options: InferenceOptions | None, instead: str
) -> Predictor:
    """The network of a downloaded model with the weights of its files, in the class of its config.

    transformers takes a folder and chooses a file in it itself. Where that is not what was opened
    (`runs/best.safetensors`, `org/name:file.pth`, `?weights=ema`), it is given the tensors.

    Args:
        checkpoint: resolved with `download=True`.
        options: how images go through.
        instead: what to do where nothing says which network it is of, a sentence.

    Raises:
        EvaluationError: there is no config.json, or no image processor.
        OutputError: config.json names no class, or weights and class do not go together.
    """
    if checkpoint.folder is None or checkpoint.config is None:
        raise EvaluationError(
            f"{checkpoint.label} is a weight file without a config.json, so nobody knows which "
            f"network it is of. {instead}"
        )
    weights = None if _found_by_transformers(checkpoint) else _tensors_of(checkpoint)
    return Predictor.load(checkpoint.folder, options, checkpoint.label, weights)


def _found_by_transformers(checkpoint: Checkpoint) -> bool:
    """Whether transformers, given the folder, reads the very tensors that were opened.

    Only of safetensors files, which it maps into memory: pickles we read more strictly than it.
    """
    folder, config = checkpoint.folder, checkpoint.config
    assert folder is not None
    assert config is not None
    paths = {r.path for r in checkpoint.readers.values() if isinstance(r, LocalFile)}
    if checkpoint.format != "safetensors" or checkpoint.prefix or checkpoint.part_files:
        return False
    # its order, which is not the one of `choose_weights`: the single file before the index
    names = ("model.safetensors", "model.safetensors.index.json")
    asked = config.get("transformers_weights")
    first = next((folder / n for n in names if (folder / n).is_file()), None)
    if isinstance(asked, str):
        first = folder / asked
    return first is not None and paths == _files_of(first)


def _files_of(path: Path) -> set[Path]:
    """A weight file, or the files of a shard index; nothing where that cannot be read."""
    if path.suffix != ".json":
        return {path}
    try:
        index = json.loads(read_small(path, _MAX_INDEX))
        return {path.parent / name for name in index["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def _tensors_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by its key, in memory."""
    import torch

    tensors = {}
    for key, entry in checkpoint.entries.items():
        kind = getattr(torch, dtype_name(entry.dtype))
        if entry.elements:
            flat = torch.frombuffer(bytearray(checkpoint.read(entry)), dtype=kind)
        else:
            flat = torch.empty(0, dtype=kind)
        tensors[key] = flat.reshape(entry.shape)
    return tensors
