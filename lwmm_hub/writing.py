"""Write a merged folder: everything into a temporary folder beside it, then published whole.

Nothing appears under the final name before it is complete and synced. A run that fails or is
killed leaves the previous state; what it left behind is cleared by the next run.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwmm_hub.checkpoint import SIDE_FILES, Checkpoint, dtype_name
from lwmm_hub.checkpoint.safetensors import write_header
from lwmm_hub.errors import CheckpointError, OutputError
from lwmm_hub.merging import OutputTensor, TargetFile, merge_files, output_tensors
from lwmm_hub.planning import MergePlan, parse_size
from lwmm_hub.torch_files import write_pth

WEIGHTS = "model.safetensors"
PTH = "model.pth"
INDEX = "model.safetensors.index.json"
MANIFEST = "lwmm_manifest.json"
RECIPE = "lwmm_recipe.yaml"
METADATA = {"format": "pt", "merged_with": "lwmm-hub"}
SPARE = 1 << 20  # for everything that is not weights


@dataclass(frozen=True)
class WrittenFile:
    """One weight file of the output."""

    name: str
    sha256: str
    bytes: int


# ------------------------------------------------------------------------------- before writing


def check_output(output: Path, overwrite: bool, inputs: Sequence[Path], need: int) -> None:
    """Refuse an output that exists, is an input, or does not fit, before anything is read.

    Raises:
        OutputError: with what to do.
    """
    if output.name in {"", ".."}:
        raise OutputError(f"{output} has no name of its own: name a new folder in it with -o.")
    try:
        output.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OutputError(
            f"cannot write to {output}: {error.strerror}. Choose another folder with -o."
        ) from error
    recover(output)
    target = output.resolve()
    for path in inputs:
        if target in (path.resolve(), *path.resolve().parents):
            raise OutputError(f"{output} holds one of the models: choose another folder with -o.")
    if output.is_symlink():
        raise OutputError(f"{output} is a link: name the folder that it points to with -o.")
    if output.exists():
        if not output.is_dir():
            raise OutputError(f"{output} is a file: choose another folder with -o.")
        ours = (output / MANIFEST).exists()
        if any(output.iterdir()):
            if not overwrite:
                raise OutputError(
                    f"{output} exists already. Pass --overwrite to replace it, or choose another "
                    "folder with -o."
                )
            if not ours:
                raise OutputError(
                    f"{output} was not written by lwmm-hub (it has no {MANIFEST}), so --overwrite "
                    "leaves it alone. Choose another folder with -o."
                )
    parent = _existing_parent(output)
    free = shutil.disk_usage(parent).free
    if free < need + SPARE:
        raise OutputError(
            f"the merge needs {(need + SPARE) / 1e6:.0f} MB in {parent}, and {free / 1e6:.0f} MB "
            "are free. Make room, or choose another folder with -o."
        )


def _existing_parent(path: Path) -> Path:
    for parent in path.absolute().parents:
        if parent.exists():
            return parent
    return Path.cwd()


# ------------------------------------------------------------------------------- the weights


def shard(
    tensors: Sequence[OutputTensor], max_shard_size: str
) -> list[tuple[str, list[OutputTensor]]]:
    """Split the tensors, in order, into files of at most `max_shard_size`."""
    limit = parse_size(max_shard_size)
    shards: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size
    if len(shards) == 1:
        return [(WEIGHTS, shards[0])]
    total = len(shards)
    return [
        (f"model-{i:05d}-of-{total:05d}.safetensors", shard)
        for i, shard in enumerate(shards, start=1)
    ]


def write_weights(
    folder: Path,
    plan: MergePlan,
    checkpoints: Sequence[Checkpoint],
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[WrittenFile]:
    """Run the plan into safetensors files in `folder`; not yet synced.

    Raises:
        OutputError: the disk is full or not writable.
        MergeError: the weights cannot be merged as asked.
    """
    tensors = output_tensors(plan, checkpoints[0])
    as_pth = plan.options.output_format == "pth"
    shards = [(WEIGHTS, tensors)] if as_pth else shard(tensors, plan.options.max_shard_size)
    try:
        with ExitStack() as stack:
            targets = []
            for name, members in shards:
                head, starts = write_header(((t.key, t.dtype, t.shape) for t in members), METADATA)
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
                descriptor = os.open(folder / name, flags, 0o644)
                stack.callback(os.close, descriptor)
                targets.append(TargetFile(members, starts, head, descriptor))
            hashes = merge_files(plan, checkpoints, targets, threads, progress=progress)
        if as_pth:
            return [_as_pth(folder, checkpoints[0])]
    except OSError as error:
        raise _disk_error(error, folder) from error
    written = [
        WrittenFile(name, digest, (folder / name).stat().st_size)
        for (name, _), digest in zip(shards, hashes, strict=True)
    ]
    if len(shards) > 1:
        total = sum(t.size for t in tensors)
        where = {t.key: name for name, members in shards for t in members}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")
    return written


def _as_pth(folder: Path, anchor: Checkpoint) -> WrittenFile:
    """Turn the merged safetensors file into a `.pth` file."""
    path = folder / PTH
    write_pth(path, folder / WEIGHTS, anchor)
    (folder / WEIGHTS).unlink()
    return WrittenFile(PTH, sha256_of(path), path.stat().st_size)


def sha256_of(path: Path) -> str:
    """The checksum of a file, as the Hub computes it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _disk_error(error: OSError, folder: Path) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(
            f"the disk became full while writing to {folder.parent} ({error.strerror}). Nothing "
            "was kept. Make room, or choose another folder with -o."
        )
    return OutputError(f"cannot write to {folder.parent}: {error.strerror or error}.")


def write_model(
    folder: str | Path,
    plan: MergePlan,
    checkpoints: Sequence[Checkpoint],
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[WrittenFile]:
    """Run a plan into an existing, empty folder: weights, configuration, image processor.

    `merge` does this inside a folder that appears whole, and adds card, recipe and manifest.

    Raises:
        OutputError: the disk is full or not writable.
        MergeError: the weights cannot be merged as asked.
    """
    written = write_weights(Path(folder), plan, checkpoints, threads, progress)
    copy_side_files(Path(folder), checkpoints[0], plan)
    return written


# ------------------------------------------------------------------------------- the other files


def copy_side_files(folder: Path, anchor: Checkpoint, plan: MergePlan) -> None:
    """Configuration and image processor of the anchor, unchanged but for `dtype`."""
    if anchor.folder is None:
        return
    for name in SIDE_FILES:
        source = anchor.folder / name
        if source.is_file():
            text = read_beside(source, anchor.label)
            if name == "config.json":
                text = _with_dtype(text, anchor, plan)
            (folder / name).write_bytes(text)


def read_beside(path: Path, label: str) -> bytes:
    """A file that lies beside a parent's weights.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{label}: cannot read {path.name}: {error.strerror or error}. Check its permissions."
        ) from error


def stored_dtype(anchor: Checkpoint, plan: MergePlan) -> str:
    """The usual name of the dtype that the output's floats are stored in."""
    option = plan.options.dtype
    return anchor.dtype if option == "auto" else option


def _with_dtype(text: bytes, anchor: Checkpoint, plan: MergePlan) -> bytes:
    """config.json as it is where its dtype is true, else with the true one."""
    config = json.loads(text)
    dtype = stored_dtype(anchor, plan)
    said = [config[name] for name in ("dtype", "torch_dtype") if name in config]
    if all(name == dtype for name in said) and (said or dtype == dtype_name("F32")):
        return text
    if "torch_dtype" in config:
        config["torch_dtype"] = dtype
    config["dtype"] = dtype
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with plain newlines on every system."""
    path.write_bytes(text.encode())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write readable JSON: an entry of a table on a line, an item of a list on a line."""
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    write_text(path, _json(data, encode, "") + "\n")


def _json(value: Any, encode: Callable[[Any], str], indent: str) -> str:
    """Tables spread over lines, the items of their lists each on one.

    `json` indents in Python, which takes five times as long for a plan of a thousand tensors.
    """
    inner = f"{indent} "
    if isinstance(value, Mapping) and any(isinstance(v, Mapping | list) for v in value.values()):
        rows = [f"{encode(str(k))}: {_json(v, encode, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(inner + row for row in rows) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        return "[\n" + ",\n".join(inner + encode(item) for item in value) + f"\n{indent}]"
    return encode(value)


# ------------------------------------------------------------------------------- publishing whole


@contextmanager
def temporary_folder(output: Path) -> Iterator[Path]:
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
                f"cannot write to {output.parent}: {error.strerror}. Choose another folder with -o."
            ) from error
        yield folders[-1]
    except OSError as error:
        raise _disk_error(error, folders[-1]) from error
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
    another one. Where there are no locks, it stays unlocked. A folder is noted before it is made,
    so that an interrupt leaves none behind.
    """
    tries = 3
    while True:
        tries -= 1
        folders.append(output.parent / f".{output.name}.lwmm-{secrets.token_hex(6)}.tmp")
        folders[-1].mkdir(mode=0o755)
        lock = _lock(folders[-1])
        if not tries or (lock is not None and folders[-1].exists()):
            return lock
        _unlock(lock)


def start_sync(paths: Sequence[Path]) -> Callable[[], None]:
    """Sync files in a thread, so that the disk works while the card is rendered; call to wait."""
    pool = ThreadPoolExecutor(1)
    jobs = [pool.submit(_sync, path) for path in paths]

    def wait() -> None:
        for job in jobs:
            job.result()
        pool.shutdown()

    return wait


def publish_folder(folder: Path, output: Path, overwrite: bool) -> None:
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
            raise OutputError(f"{output} {why}. Choose another folder with -o.") from error
    elif _exchange(folder, output):
        shutil.rmtree(folder, ignore_errors=True)  # holds the old content now
    else:
        aside = output.with_name(f".{output.name}.lwmm-{secrets.token_hex(6)}.old")
        os.rename(output, aside)  # noqa: PTH104
        os.rename(folder, output)  # noqa: PTH104
        shutil.rmtree(aside, ignore_errors=True)
    _sync(output.parent)


def recover(output: Path) -> None:
    """Clear what killed runs left beside `output`; put an old folder back that was set aside."""
    parent = output.parent
    if not parent.is_dir():
        return
    for old in parent.glob(f".{_glob(output.name)}.lwmm-*.old"):
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, output)  # noqa: PTH104
    for left in parent.glob(f".{_glob(output.name)}.lwmm-*.tmp"):
        lock = _lock(left)
        if lock is not None:  # nobody works in it
            shutil.rmtree(left, ignore_errors=True)
            _unlock(lock)


def _glob(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lock(folder: Path) -> int | None:
    """A descriptor that marks a folder as being worked in; None if another process does.

    The folder itself is locked, so that no file has to be cleared away; the lock goes with the
    process. Where there are no such locks (Windows), a folder counts as left behind after a day.
    """
    try:
        import fcntl
    except ImportError:
        old = time.time() - folder.stat().st_mtime > 24 * 3600
        return os.open(os.devnull, os.O_RDONLY) if old else None
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
