"""Models of their real size as headers: the tensors are a hole in a sparse file."""

from __future__ import annotations

import functools
import json
import math
import struct
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

_CODES = {torch.float32: ("F32", 4), torch.int64: ("I64", 8)}


def write_headers(
    model_class: str, config: dict[str, Any], folder: Path, index: int | None = None
) -> Path:
    """A folder with the config and a file with the true header, which reads as zeros.

    `index` adds, as transformers 4.57 did, a table of indices to each Swin block of that window,
    and leaves out what its Swin backbones did not have.
    """
    model, tensors = _tensors(model_class, json.dumps(config))
    if index is not None:
        tensors = {key: what for key, what in tensors.items() if ".swin.layernorm." not in key}
        for key in [key for key in tensors if key.endswith(".relative_position_bias_table")]:
            beside = key.removesuffix("_bias_table") + "_index"
            tensors[beside] = ("I64", 8, (index**2, index**2))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key in sorted(tensors):
        code, width, shape = tensors[key]
        start, end = end, end + width * math.prod(shape)
        header[key] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    model.config.architectures = [model_class]
    model.config.save_pretrained(folder)
    return folder


@functools.cache
def _tensors(
    model_class: str, config: str
) -> tuple[transformers.PreTrainedModel, dict[str, tuple[str, int, tuple[int, ...]]]]:
    """The model on the meta device, and the key, dtype, width and shape of what it would save."""
    cls = getattr(transformers, model_class)
    with torch.device("meta"):
        model = cls(cls.config_class.from_dict(json.loads(config)))
    saved = revert_weight_conversion(model, model.state_dict())
    return model, {key: (*_CODES[value.dtype], tuple(value.shape)) for key, value in saved.items()}
