"""What the weight files of a local model are known again by, without reading them whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from lwmm_hub.checkpoint.entries import open_flags

_BLOCK = 1 << 12  # bytes of one place
_PLACES = 64  # of a file, evenly spaced, the first at its start and the last at its end


def files_at(path: Path, names: Sequence[str]) -> dict[str, Path]:
    """Where the weight files of a local model lie: name -> path, whether there or not.

    Args:
        path: the model as it is named: a folder, a weight file, or a shard index.
        names: of its files, as `Checkpoint.files` has them. A single weight file may have been
            renamed since.
    """
    if path.is_dir():
        return {name: path / name for name in names}
    if len(names) == 1 and path.suffix != ".json":
        return {names[0]: path}
    return {name: path.parent / name for name in names}


def marks_of(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The marks of a local model's weight files; what cannot be read has none.

    A mark is a checksum of a file's size, the time it was changed last, and some KiB all over it.
    Equal marks mean the same file, unless somebody changed single values in it and then put its
    time back. Whoever copies a model without its times (`cp` without `-p`) makes new marks.

    Args:
        path: the model as it is named: a folder, a weight file, or a shard index.
        names: of its files.
    """
    marks = {}
    for name, file in files_at(path, names).items():
        try:
            marks[name] = _mark_of(file)
        except OSError:
            continue
    return marks


def _mark_of(file: Path) -> str:
    descriptor = os.open(file, open_flags())
    try:
        status = os.fstat(descriptor)
        seen = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns} ".encode())
        last = max(0, status.st_size - _BLOCK)
        for place in sorted({last * i // (_PLACES - 1) for i in range(_PLACES)}):
            os.lseek(descriptor, place, os.SEEK_SET)
            seen.update(os.read(descriptor, _BLOCK))
    finally:
        os.close(descriptor)
    return seen.hexdigest()
