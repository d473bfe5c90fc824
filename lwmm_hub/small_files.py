"""Files of bounded length: what a pipe, a device or a false size would make endless."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

# What a user names who gives a text by `<(command)` or `|`: open already, so nobody waits for it.
# A link to such a thing is none.
_OPEN = re.compile(r"/dev/(?:stdin|fd/\d+)|/proc/self/fd/\d+")


def is_stream(path: Path) -> bool:
    """Whether a path names what is open already, such as `/dev/stdin`."""
    return _OPEN.fullmatch(str(path)) is not None


def read_small(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes, or of `/dev/stdin` and its like.

    A small size that the system states is not trusted: that of files in `/proc` is 0.

    Raises:
        OSError: it cannot be read, is no regular file, or is longer; `strerror` says which.
    """
    status = path.stat()  # before it is opened: opening a pipe waits for who writes to it
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not (stat.S_ISREG(status.st_mode) or is_stream(path)):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    content = b""
    if status.st_size <= limit:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    if max(status.st_size, len(content)) > limit:
        raise OSError(errno.EFBIG, f"it has over {limit >> 20} MiB, too many", str(path))
    return content


def read_small_text(path: Path, limit: int) -> str:
    """The same as UTF-8 with plain newlines.

    Raises:
        OSError: it cannot be read, is no regular file, or is longer.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_small(path, limit).decode("utf-8").replace("\r\n", "\n")


def leads_out(path: Path, home: Path) -> bool:
    """Whether a file below the folder `home` is a link to one outside it.

    In the Hub's cache all files of a folder are links, into the `blobs` of their repository.
    """
    home, target = home.resolve(), path.resolve()
    cached = (above.parent for above in home.parents if above.name == "snapshots")
    blobs = (
        (repo / "blobs").resolve()
        for repo in cached
        if re.match(r"(?:model|dataset)s--", repo.name)
    )
    return not any(target.is_relative_to(folder) for folder in (home, *blobs))
