"""Tensors of opened files into a safetensors file: streamed, hashed, rounded where asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lwmm_hub.checkpoint import DTYPES, MERGEABLE, Checkpoint, TensorEntry
from lwmm_hub.checkpoint.safetensors import write_header
from lwmm_hub.errors import MergeError
from lwmm_hub.floats import narrow, storage_dtype, sum_dtype, view, widen
from lwmm_hub.merging import OutputTensor, read_at
from lwmm_hub.merging.segments import OpenFiles

CHUNK = 1 << 19  # elements at once; 8 bytes each at most, and as much again for rounding

METADATA = {"format": "pt", "converted_with": "lwmm-hub"}


def copy_tensors(
    path: Path,
    tensors: Sequence[OutputTensor],
    checkpoint: Checkpoint,
    files: OpenFiles,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Write one safetensors file; its sha256. Memory does not depend on the sizes of tensors.

    Values of the same dtype are moved as bytes (NaNs keep their payload); others are rounded to
    nearest even.

    Raises:
        MergeError: a value is too large for the wanted dtype.
        CheckpointError: a file changed while it was read.
    """
    head = write_header(((t.key, t.dtype, t.shape) for t in tensors), METADATA)
    digest = hashlib.sha256(head)
    buffer = memoryview(bytearray(CHUNK * 8))
    with path.open("xb") as file:
        file.write(head)
        for tensor in tensors:
            entry = checkpoint.entries[tensor.key]
            descriptor = files.descriptors[files.number(0, entry.file)]
            width = DTYPES[entry.dtype][0] // 8
            for first in range(0, entry.elements, CHUNK):
                count = min(CHUNK, entry.elements - first)
                data = buffer[: count * width]
                read_at(descriptor, data, entry.offset + first * width)
                made = data if tensor.dtype == entry.dtype else _rounded(data, entry, tensor.dtype)
                file.write(made)
                digest.update(made)
                if progress is not None:
                    progress(len(made))
    return digest.hexdigest()


def output_tensors(
    entries: Mapping[str, TensorEntry], dtype: Callable[[str], str]
) -> list[OutputTensor]:
    """The tensors of a result: large elements first, so that all are aligned, else in order."""
    tensors = [OutputTensor(key, dtype(e.dtype), e.shape) for key, e in entries.items()]
    return sorted(tensors, key=lambda t: -DTYPES[t.dtype][0])


def _rounded(data: memoryview, entry: TensorEntry, dtype: str) -> memoryview:
    assert entry.dtype in MERGEABLE
    count = len(data) * 8 // DTYPES[entry.dtype][0]
    values = view(data, entry.dtype, count)
    real = sum_dtype({entry.dtype, dtype})
    if values.dtype != real:
        values = widen(values, entry.dtype, np.empty(count, real))
    out = np.empty(count, storage_dtype(dtype))
    if not narrow(values, dtype, out):
        raise MergeError(
            f"{entry.key} has a value that is too large for {DTYPES[dtype][1]}. Pass --dtype "
            "float32 (or bfloat16)."
        )
    return out.view(np.uint8).data
