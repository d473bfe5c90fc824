"""Models on disk, in the spellings of transformers 5 and 4.57; keys are found by bytes."""

from __future__ import annotations

import contextlib
import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from .building import Built

Dialect = Literal["5.23", "new names", "4.57"]
DIALECTS: tuple[Dialect, ...] = ("5.23", "new names", "4.57")

_DATA2VEC = "Data2VecVisionForSemanticSegmentation"


def write_folder(built: Built, folder: Path, dialect: Dialect = "5.23") -> Path:
    """What `save_pretrained` writes: by default, with `save_original_format=False`, or in 4.57.

    transformers 4.57 wrote the names that 5.23 writes by default, and besides the index buffers
    of every Swin; its Swin backbones had no norm that no feature map passes through, and
    Data2Vec's head still had BEiT's names (KEYS_TRANSFORMERS.md, sections 0, 2 and 4).
    """
    as_it_was = data2vec_head_as_in_4() if dialect == "4.57" else contextlib.nullcontext()
    with warnings.catch_warnings(), as_it_was:
        warnings.simplefilter("ignore")  # of transformers' own making
        built.model.save_pretrained(folder, save_original_format=dialect != "new names")
    if dialect == "4.57" and built.specimen.family == "swin":
        _rewrite_swin(folder / "model.safetensors", built)
    return folder


def _rewrite_swin(path: Path, built: Built) -> None:
    tensors = load_file(path)
    window = (
        built.specimen.config.get("window_size")
        or (built.specimen.config["backbone_config"]["window_size"])
    )
    index = torch.arange(window**4, dtype=torch.int64).reshape(window**2, window**2)
    for key in list(tensors):
        if key.endswith(".relative_position_bias_table"):
            beside = key.removesuffix("_bias_table") + "_index"
            tensors.setdefault(beside, index.clone())
        if re.search(r"\.swin\.layernorm\.", key):  # in SwinBackbone, which 4.57 had without it
            del tensors[key]
    save_file(tensors, path, {"format": "pt"})


@contextlib.contextmanager
def data2vec_head_as_in_4() -> Iterator[None]:
    """5.23 renamed the modules of Data2Vec's head and forgot to map the names of files.

    Within the context it has BEiT's map for it, without which it reads no older file and writes
    names that 4.57 did not know.
    """
    from transformers import conversion_mapping as mapping

    head = mapping.get_checkpoint_conversion_mapping("BeitForSemanticSegmentation")
    known = mapping.get_checkpoint_conversion_mapping(_DATA2VEC)
    assert head is not None
    if known is None:
        mapping.register_checkpoint_conversion_mapping(_DATA2VEC, head)
    try:
        yield
    finally:
        if known is None:
            mapping._checkpoint_conversion_mapping_cache.pop(_DATA2VEC)
            mapping.USER_REGISTERED_MAPPINGS.discard(_DATA2VEC)


def keys_by_tensor(built: Built, folder: Path) -> dict[str, str]:
    """Name in the state dict -> key in the file, told by the bytes of the tensor alone.

    Every float tensor of `building.descend` has values of its own, as has every counter.
    """
    in_file: dict[bytes, str] = {}
    for key, value in load_file(folder / "model.safetensors").items():
        if not key.endswith("relative_position_index"):  # alike in all blocks of a Swin
            assert in_file.setdefault(_digest(value), key) == key
    return {
        name: in_file[_digest(value)]
        for name, value in _state(built).items()
        if _digest(value) in in_file
    }


def _state(built: Built) -> Mapping[str, torch.Tensor]:
    return {
        name: value
        for name, value in built.model.state_dict().items()
        if not name.endswith("relative_position_index")
    }


def _digest(tensor: torch.Tensor) -> bytes:
    header = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    return hashlib.sha256(header + tensor.contiguous().numpy().tobytes()).digest()
