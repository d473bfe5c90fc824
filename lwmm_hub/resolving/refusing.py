"""Weights that are no numbers to average: codes of a quantised model, parts of an adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lwmm_hub.checkpoint import MERGEABLE, TensorEntry
from lwmm_hub.errors import CheckpointError
from lwmm_hub.resolving.choosing import MERGE_FIRST

# how a key ends that stands beside the codes of a weight, whatever these are called
_BESIDE_CODES = (
    ".qweight",
    ".qzeros",
    ".SCB",
    ".weight_scale",
    ".weight_scale_inv",
    ".absmax",
    ".quant_map",
)

# what says how to read integers that are called `weight`, in the same module
_SCALES = (
    "scale",
    "scales",
    "weight_scale",
    "weight_scales",
    "zero_point",
    "zero_points",
    "weight_zero_point",
)

# a part of a product that is added to a weight: peft's and loralib's names, kohya's, LyCORIS's,
# and those of LoRA for Segment Anything (SAMed)
_ADAPTER = re.compile(
    r"(?:^|\.)(?:lora_(?:A|B|embedding_A|embedding_B|magnitude_vector|up|down)"
    r"|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)"
    r"|linear_[ab]_[qkv]|w_[ab]_\d{3})(?:\.|$)"
)


def refuse_quantised(config: Mapping[str, Any] | None, label: str) -> None:
    """Refuse a model whose configuration says that its weights are codes.

    Raises:
        CheckpointError: the model is quantised.
    """
    quantised = (config or {}).get("quantization_config")
    if isinstance(quantised, dict):
        method = str(quantised.get("quant_method", "unknown"))[:40]
        raise CheckpointError(_quantised(label, method, ""))


def refuse_no_numbers(entries: Mapping[str, TensorEntry], label: str) -> None:
    """Refuse a file whose tensors show that it is quantised, or holds an adapter.

    An adapter inside a model is one as well: the mean of two products is not the product of the
    means.

    Raises:
        CheckpointError: it is one of them.
    """
    for key, entry in entries.items():
        if _is_code(key, entry, entries):
            raise CheckpointError(_quantised(label, "of an unnamed method", f", see {key[:120]!r}"))
        if _ADAPTER.search(key):
            raise CheckpointError(
                f"{label} holds a LoRA adapter beside its weights ({key[:120]!r}), whose parts "
                f"cannot be averaged by themselves: {MERGE_FIRST}"
            )


def _is_code(key: str, entry: TensorEntry, entries: Mapping[str, TensorEntry]) -> bool:
    """Whether a tensor is codes of a weight, or says how to read them."""
    if key.endswith(_BESIDE_CODES) or ".quant_state." in key:
        return True
    module, _, leaf = key.rpartition(".")
    if leaf != "weight" or len(entry.shape) < 2 or entry.dtype in MERGEABLE:
        return False
    beside = f"{module}." if module else ""
    return entry.dtype.startswith("F8_") or any(beside + name in entries for name in _SCALES)


def _quantised(label: str, method: str, where: str) -> str:
    return (
        f"{label} is quantised ({method}{where}): its weights are codes that cannot be averaged. "
        "Name the model it was made from."
    )
