"""What a model's files hold: keys, dtypes, shapes and places, read from headers alone."""

from __future__ import annotations

from lwmm_hub.checkpoint.entries import (
    DTYPE_CODES,
    DTYPES,
    MERGEABLE,
    ByteReader,
    LocalFile,
    TensorEntry,
    dtype_name,
    tensor_bytes,
)
from lwmm_hub.checkpoint.marks import files_at, marks_of
from lwmm_hub.checkpoint.model import SIDE_FILES, TOGETHER, Checkpoint, ModelFacts

__all__ = [
    "DTYPES",
    "DTYPE_CODES",
    "MERGEABLE",
    "SIDE_FILES",
    "TOGETHER",
    "ByteReader",
    "Checkpoint",
    "LocalFile",
    "ModelFacts",
    "TensorEntry",
    "dtype_name",
    "files_at",
    "marks_of",
    "tensor_bytes",
]
