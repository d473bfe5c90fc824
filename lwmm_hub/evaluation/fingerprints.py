"""What tells files of a data set from any others: kept scores must not outlive a correction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_WHOLE = 1 << 20  # bytes up to which every file is read as a whole
_BLOCK = 1 << 16
_ENDS = 1 << 12
# Formats of coded pixels, in which an edit moves or changes nearly all that comes behind it.
_CODED = (".jpg", ".jpeg", ".jfif", ".webp")


def mark_of(path: Path, name: str) -> bytes:
    """Changes with a file's name and content, and with nothing else: copies elsewhere are equal.

    Of a PNG both ends are read: it begins with its palette and ends with a checksum of all pixels.
    Of a JPEG or WebP over 1 MiB, 16 parts at equal steps are, both ends among them: an edit that
    keeps the size to the byte and touches none of them is not seen. Other files are read whole.

    Args:
        path: may be missing, or no regular file.
        name: to stand for it, the same wherever the data set lies.
    """
    size = -1
    with suppress(OSError):  # of a name that is too long, too
        size = path.stat().st_size if path.is_file() else -1
    seen = hashlib.sha256(f"{name} {size}\n".encode("utf-8", "surrogateescape"))
    length = _BLOCK
    starts: Sequence[int] = range(0, size, length)
    if path.suffix.lower() == ".png":
        length = _ENDS
        starts = (0, max(size - length, 0))
    elif path.suffix.lower() in _CODED and size > _WHOLE:
        parts = _WHOLE // length
        starts = [i * (size - length) // (parts - 1) for i in range(parts)]
    if size >= 0:
        # what cannot be read is said where it is, and never where it is not
        with suppress(OSError), path.open("rb") as file:
            for start in starts:
                file.seek(start)
                seen.update(file.read(length))
    return seen.digest()


def fingerprint_of(table: Any) -> str | None:
    """What tells a table from any other, files among them that it names and does not hold.

    `datasets` knows when a table changes, and not when such a file does.

    Returns:
        None where it has no fingerprint: nothing is kept of a stream.
    """
    found: str | None = getattr(table, "_fingerprint", None)
    if found is None or not hasattr(table, "data"):
        return found
    seen = hashlib.sha256(found.encode())
    named = 0
    for column, kind in table.features.items():
        if type(kind).__name__ != "Image":
            continue
        for chunk in table.data.column(column).chunks:
            if chunk.field("bytes").null_count:
                paths = [path for path in chunk.field("path").to_pylist() if path is not None]
                named += len(paths)
                for path in paths:
                    seen.update(mark_of(Path(path), path))
    return seen.hexdigest()[:40] if named else found
