"""Values to files: safetensors, `.pth` and the folders transformers reads."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from .dialects import spell_transformers_new, spell_transformers_old
from .neutral import Values
from .size import SegformerSize

CITYSCAPES_LABELS = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)

PREPROCESSOR_CONFIG = {
    "image_processor_type": "SegformerImageProcessor",
    "do_normalize": True,
    "do_reduce_labels": False,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 64, "width": 64},
}


def cast(tensors: Mapping[str, np.ndarray], dtype: str) -> Values:
    """Floating-point tensors in another dtype; counters stay int64."""
    target = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return {
        key: value if value.dtype == np.int64 else value.astype(target)
        for key, value in tensors.items()
    }


def write_safetensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """A file of the safetensors library, which orders its data by dtype and name."""
    contiguous = {key: np.require(value, requirements="C") for key, value in tensors.items()}
    save_file(contiguous, path, {"format": "pt"})
    return Path(path)


def write_pth(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    wrapper: Literal["state_dict", "model"] | None = None,
    prefix: str = "",
    legacy: bool = False,
) -> Path:
    """A pickle of torch, in the order of `tensors`.

    `wrapper` puts the state dict where mmcv ("state_dict", next to "meta") or Detectron-like
    trainers ("model", next to "iteration") keep it; `prefix` goes before each key ("module.");
    `legacy` writes the format from before torch 1.6, which is no zip archive.
    """
    import torch

    def tensor(value: np.ndarray) -> torch.Tensor:
        if value.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(value.copy())

    state: Any = OrderedDict((prefix + key, tensor(value)) for key, value in tensors.items())
    state._metadata = OrderedDict({"": {"version": 1}})  # as torch's own state dicts have it
    content: Any = state
    if wrapper == "state_dict":
        content = {"meta": {"epoch": 1, "CLASSES": ("road", "sidewalk")}, "state_dict": state}
    elif wrapper == "model":
        content = {"model": state, "iteration": 1000}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return Path(path)


def labels_for(num_classes: int) -> list[str]:
    """Cityscapes' names, then `class 19`, `class 20`, ..."""
    return [
        CITYSCAPES_LABELS[i] if i < len(CITYSCAPES_LABELS) else f"class {i}"
        for i in range(num_classes)
    ]


def transformers_config(
    size: SegformerSize, labels: Sequence[str] | None = None, dtype: str = "float32"
) -> dict[str, Any]:
    """What `SegformerConfig(...).to_dict()` says of a SegformerForSemanticSegmentation."""
    labels = labels_for(size.num_classes) if labels is None else labels
    assert len(labels) == size.num_classes
    return {
        "architectures": ["SegformerForSemanticSegmentation"],
        "model_type": "segformer",
        "dtype": dtype,
        "num_channels": 3,
        "num_encoder_blocks": 4,
        "depths": list(size.depths),
        "sr_ratios": list(size.sr_ratios),
        "hidden_sizes": list(size.widths),
        "patch_sizes": [7, 3, 3, 3],
        "strides": [4, 2, 2, 2],
        "num_attention_heads": list(size.heads),
        "mlp_ratios": [size.mlp_ratio] * 4,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "drop_path_rate": 0.1,
        "layer_norm_eps": 1e-6,
        "decoder_hidden_size": size.decoder_width,
        "semantic_loss_ignore_index": 255,
        "reshape_last_stage": True,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def write_transformers_folder(
    folder: str | Path,
    neutral: Mapping[str, np.ndarray],
    size: SegformerSize,
    dialect: Literal["old", "new"] = "old",
    sharded: bool = False,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    labels: Sequence[str] | None = None,
) -> Path:
    """A SegformerForSemanticSegmentation as on the Hub: weights, config and preprocessor.

    The number of classes is read from the values. `sharded` makes two weight files and an index.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spelling = spell_transformers_old if dialect == "old" else spell_transformers_new
    tensors = cast(spelling(neutral, size), dtype)
    if sharded:
        _write_shards(folder, tensors)
    else:
        write_safetensors(folder / "model.safetensors", tensors)
    size = size.with_classes(len(neutral["head.classifier.bias"]))
    _write_json(folder / "config.json", transformers_config(size, labels, dtype))
    _write_json(folder / "preprocessor_config.json", PREPROCESSOR_CONFIG)
    return folder


def _write_shards(folder: Path, tensors: Values) -> None:
    keys = list(tensors)
    halves = (keys[: len(keys) // 2], keys[len(keys) // 2 :])
    weight_map = {}
    for number, half in enumerate(halves, start=1):
        name = f"model-{number:05}-of-00002.safetensors"
        write_safetensors(folder / name, {key: tensors[key] for key in half})
        weight_map.update(dict.fromkeys(half, name))
    total_size = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
