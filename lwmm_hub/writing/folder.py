"""A folder that appears whole or not at all: temporary beside its place, then published."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from lwmm_hub.checkpoint import SIDE_FILES
from lwmm_hub.errors import OutputError
from lwmm_hub.reference import is_text

MANIFEST = "lwmm_manifest.json"

RECIPE = "lwmm_recipe.yaml"

CONVERSION = "lwmm_conversion.json"

# what a merged or converted folder holds; --overwrite replaces nothing else
OURS = frozenset(
    {MANIFEST, RECIPE, CONVERSION, *SIDE_FILES, "README.md", "layer_weights.svg", "LICENSE"}
)
WEIGHT_FILES = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|model\.pth|pytorch_model\.bin"
    r"|(source|target)_[FBC]\.pt"  # CoNMix
)

SPARE = 1 << 20  # for everything that is not weights


class Words(NamedTuple):
    """What messages call that which is written, and by what the user says where to."""

    what: str = "merge"
    by: str = " with -o"


MERGING = Words()


def check_output(
    output: Path, overwrite: bool, inputs: Sequence[Path], need: int, words: Words = MERGING
) -> None:
    """Refuse an output that exists, is an input, or does not fit, before anything is read.

    Raises:
        OutputError: with what to do.
    """
    if output.name in {"", ".."}:
        raise OutputError(f"{output} has no name of its own: name a new folder in it{words.by}.")
    if not is_text(output.name):
        raise OutputError(
            f"{output.name!r} is not written in UTF-8: choose another name{words.by}."
        )
    try:
        output.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OutputError(
            f"cannot write to {output}: {error.strerror}. Choose another folder{words.by}."
        ) from error
    recover(output)
    target = output.resolve()
    for path in inputs:
        if target in (path.resolve(), *path.resolve().parents):
            raise OutputError(f"{output} holds one of the models: choose another folder{words.by}.")
    if output.is_symlink():
        raise OutputError(f"{output} is a link: name the folder that it points to{words.by}.")
    if output.exists():
        if not output.is_dir():
            raise OutputError(f"{output} is a file: choose another folder{words.by}.")
        if not os.access(output, os.R_OK):
            raise OutputError(f"{output} cannot be read: choose another folder{words.by}.")
        if any(output.iterdir()):
            if not overwrite:
                raise OutputError(
                    f"{output} exists already. Pass --overwrite to replace it, or choose another "
                    f"folder{words.by}."
                )
            _require_ours(output, words)
    parent = _existing_parent(output)
    free = shutil.disk_usage(parent).free
    if free < need + SPARE:
        raise OutputError(
            f"the {words.what} needs {(need + SPARE) / 1e6:.0f} MB in {parent}, and "
            f"{free / 1e6:.0f} MB are free. Make room, or choose another folder{words.by}."
        )


def _require_ours(output: Path, words: Words) -> None:
    """Refuse to replace a folder that holds anything which lwmm-hub did not write.

    Raises:
        OutputError: it is neither merged nor converted, or somebody put files into it.
    """
    if not os.access(output, os.W_OK | os.X_OK):
        raise OutputError(
            f"{output} is read-only. Change that, or choose another folder{words.by}."
        )
    names = sorted(path.name for path in output.iterdir())
    folders = {path.name for path in output.iterdir() if _is_folder(path)}  # we write none in it
    if names and MANIFEST not in names and CONVERSION not in names:
        raise OutputError(
            f"{output} was not written by lwmm-hub (it has no {MANIFEST}), so --overwrite "
            f"leaves it alone. Choose another folder{words.by}."
        )
    ours = {name for name in names if name in OURS or WEIGHT_FILES.fullmatch(name)} - folders
    foreign = [name for name in names if name not in ours]
    if foreign:
        raise OutputError(
            f"{output} holds files that lwmm-hub did not write: {', '.join(foreign[:5])}. Move "
            f"them, or choose another folder{words.by}."
        )


def _existing_parent(path: Path) -> Path:
    for parent in path.absolute().parents:
        if parent.exists():
            return parent
    return Path.cwd()


def disk_error(error: OSError, folder: Path, words: Words = MERGING) -> OutputError:
    """What the system says of a failed write, in our words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(
            f"the disk became full while writing to {folder.parent} ({error.strerror}). Nothing "
            f"was kept. Make room, or choose another folder{words.by}."
        )
    return OutputError(f"cannot write to {folder.parent}: {error.strerror or error}.")


@contextmanager
def temporary_folder(output: Path, words: Words = MERGING) -> Iterator[Path]:
    """A folder beside `output` that is gone when the block fails, and locked while it lives."""
    parents = [path for path in output.absolute().parents if not path.exists()]
    folders: list[Path] = []
    lock = None
    try:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            lock = _make_locked(output, folders)
        except OSError as error:
            raise OutputError(
                f"cannot write to {output.parent}: {error.strerror}. Choose another "
                f"folder{words.by}."
            ) from error
        yield folders[-1]
    except OSError as error:
        raise disk_error(error, folders[-1], words) from error
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)
        if not output.exists():
            for path in parents:  # that were made for the output
                with suppress(OSError):
                    path.rmdir()


def _make_locked(output: Path, folders: list[Path]) -> int | None:
    """Make a folder beside `output`, the last of `folders`, and return its lock.

    Another run that clears leftovers may find the folder before it is locked: then there is
    another one. Where there are no locks, the first stays unlocked. A folder is noted before it is
    made, so that an interrupt leaves none behind.
    """
    tries = 3 if _has_locks() else 1
    while True:
        tries -= 1
        folders.append(output.parent / f".{output.name}.lwmm-{os.urandom(6).hex()}.tmp")
        folders[-1].mkdir(mode=0o755)
        lock = _lock(folders[-1])
        if not tries or (lock is not None and folders[-1].exists()):
            return lock
        _unlock(lock)


def start_sync(paths: Sequence[Path]) -> Callable[[], None]:
    """Sync files in a thread, so that the disk works while the card is rendered; call to wait."""
    failed: list[OSError] = []

    def sync() -> None:
        try:
            for path in paths:
                _sync(path)
        except OSError as error:
            failed.append(error)

    thread = Thread(target=sync)
    thread.start()

    def wait() -> None:
        thread.join()
        if failed:
            raise failed[0]

    return wait


def publish_folder(folder: Path, output: Path, overwrite: bool, words: Words = MERGING) -> None:
    """Sync `folder` and give it the name `output`, replacing what is there in one step.

    Raises:
        OutputError: without `overwrite`, another run has written `output` meanwhile.
    """
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix != ".safetensors":
            _sync(path)
    _sync(folder)
    if not overwrite or not output.exists():
        with suppress(OSError):
            output.rmdir()  # an empty folder
        try:
            os.rename(folder, output)  # noqa: PTH104
        except OSError as error:
            if not output.exists():
                raise
            if any(output.iterdir()):
                why = "was written by another run meanwhile, and is left as it is"
            else:
                why = f"cannot be replaced ({error.strerror})"
            raise OutputError(f"{output} {why}. Choose another folder{words.by}.") from error
        _sync(output.parent)
        return
    _require_ours(output, words)  # again: somebody may have put something there meanwhile
    if _exchange(folder, output):
        shutil.rmtree(folder, ignore_errors=True)  # holds the old content now
    else:
        aside = output.with_name(f".{output.name}.lwmm-{os.urandom(6).hex()}.old")
        os.rename(output, aside)  # noqa: PTH104
        os.rename(folder, output)  # noqa: PTH104
        shutil.rmtree(aside, ignore_errors=True)
    _sync(output.parent)


def recover(output: Path) -> None:
    """Clear what killed runs left beside `output`; put an old folder back that was set aside."""
    parent = output.parent
    if not parent.is_dir():
        return
    for old in filter(_is_folder, parent.glob(f".{_glob(output.name)}.lwmm-*.old")):
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, output)  # noqa: PTH104
    for left in filter(_is_folder, parent.glob(f".{_glob(output.name)}.lwmm-*.tmp")):
        lock = _lock(left)
        if lock is not None:  # nobody works in it
            shutil.rmtree(left, ignore_errors=True)
            _unlock(lock)


def _is_folder(path: Path) -> bool:
    """Whether it is one of ours: no link, and no pipe, which would be waited for."""
    return path.is_dir() and not path.is_symlink()


def _glob(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lock(folder: Path) -> int | None:
    """A descriptor that marks a folder as being worked in; None if another process does.

    The folder itself is locked, so that no file has to be cleared away; the lock goes with the
    process. Where there are no such locks (Windows), a folder counts as left behind after a day.
    """
    if not _has_locks():
        old = time.time() - folder.stat().st_mtime > 24 * 3600
        return os.open(os.devnull, os.O_RDONLY) if old else None
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _has_locks() -> bool:
    try:
        import fcntl  # noqa: F401
    except ImportError:
        return False
    return True


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _sync(path: Path) -> None:
    """Make a file's or folder's content survive a power cut, where the system can."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
    try:
        with suppress(OSError):  # some network file systems refuse to sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step (Linux `renameat2`, macOS `renamex_np`); False if it cannot."""
    if sys.platform == "win32":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    a, b = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):
        at_cwd, exchange = -100, 2
        return int(libc.renameat2(at_cwd, a, at_cwd, b, exchange)) == 0
    if hasattr(libc, "renamex_np"):
        swap = 2
        return int(libc.renamex_np(a, b, swap)) == 0
    return False
