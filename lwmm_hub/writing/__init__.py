"""Write a merged folder: everything into a temporary folder beside it, then published whole.

Nothing appears under the final name before it is complete and synced. A run that fails or is
killed leaves the previous state; what it left behind is cleared by the next run.
"""

from __future__ import annotations

from lwmm_hub.writing.beside import (
    copy_beside,
    copy_side_files,
    read_beside,
    stored_dtype,
    write_json,
    write_text,
)
from lwmm_hub.writing.folder import (
    CONVERSION,
    MANIFEST,
    RECIPE,
    WEIGHT_FILES,
    check_output,
    publish_folder,
    recover,
    start_sync,
    temporary_folder,
)
from lwmm_hub.writing.weights import (
    WrittenFile,
    sha256_of,
    shard,
    write_index,
    write_model,
    write_weights,
)

__all__ = [
    "CONVERSION",
    "MANIFEST",
    "RECIPE",
    "WEIGHT_FILES",
    "WrittenFile",
    "check_output",
    "copy_beside",
    "copy_side_files",
    "publish_folder",
    "read_beside",
    "recover",
    "sha256_of",
    "shard",
    "start_sync",
    "stored_dtype",
    "temporary_folder",
    "write_index",
    "write_json",
    "write_model",
    "write_text",
    "write_weights",
]
