"""Bytes at a place in a file, without moving its position: whole, on every system."""

from __future__ import annotations

import errno
import os
import threading

from lwmm_hub.errors import CheckpointError

# Of a longer write Linux may make pages so large that it has to move memory about to find room: one
# write of 339 MB in four then took 400 ms of CPU instead of 60.
_AT_ONCE = 1 << 19
_SEEK = threading.Lock()  # where the system has no positional reads, seek and read are one step


def read_at(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fill `buffer` from a file.

    Raises:
        CheckpointError: the file ends before.
    """
    while buffer:
        if hasattr(os, "preadv"):
            count = os.preadv(descriptor, [buffer], offset)
        else:
            with _SEEK:
                os.lseek(descriptor, offset, os.SEEK_SET)
                data = os.read(descriptor, len(buffer))
            count = len(data)
            buffer[:count] = data
        if not count:
            raise CheckpointError("a weight file became shorter while it was read. Merge again.")
        buffer, offset = buffer[count:], offset + count


def write_at(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Write `buffer` at its place in a file."""
    while buffer:
        if hasattr(os, "pwrite"):
            count = os.pwrite(descriptor, buffer[:_AT_ONCE], offset)
        else:
            with _SEEK:
                os.lseek(descriptor, offset, os.SEEK_SET)
                count = os.write(descriptor, buffer)
        buffer, offset = buffer[count:], offset + count


def reserve(descriptor: int, size: int) -> None:
    """Claim the room of a file at once, where the system can: a full disk shows at the start.

    Raises:
        OSError: there is no room.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV):
            raise
