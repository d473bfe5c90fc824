"""Run a plan into weight files: one, shards with an index, or a `.pth` file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from lwmm_hub.checkpoint import Checkpoint
from lwmm_hub.checkpoint.safetensors import write_header
from lwmm_hub.merging import OutputTensor, TargetFile, merge_files, output_tensors
from lwmm_hub.planning import MergePlan, parse_size
from lwmm_hub.torch_files import write_parts, write_pth
from lwmm_hub.writing.beside import copy_side_files, write_text
from lwmm_hub.writing.folder import disk_error

WEIGHTS = "model.safetensors"

PTH = "model.pth"
BIN = "pytorch_model.bin"  # the name under which transformers looks for such a file

INDEX = "model.safetensors.index.json"

METADATA = {"format": "pt", "merged_with": "lwmm-hub"}


class WrittenFile(NamedTuple):
    """One weight file of the output."""

    name: str
    sha256: str
    bytes: int


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
                head = write_header(((t.key, t.dtype, t.shape) for t in members), METADATA)
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
                descriptor = os.open(folder / name, flags, 0o644)
                stack.callback(os.close, descriptor)
                targets.append(TargetFile(members, head, descriptor))
            hashes = merge_files(plan, checkpoints, targets, threads, progress=progress)
        if as_pth:
            return _as_pth(folder, checkpoints[0])
    except OSError as error:
        raise disk_error(error, folder) from error
    written = [
        WrittenFile(name, digest, (folder / name).stat().st_size)
        for (name, _), digest in zip(shards, hashes, strict=True)
    ]
    write_index(folder, shards)
    return written


def write_index(folder: Path, shards: Sequence[tuple[str, Sequence[OutputTensor]]]) -> None:
    """Say which shard holds which tensor, where there is more than one."""
    if len(shards) == 1:
        return
    total = sum(t.size for _, members in shards for t in members)
    where = {t.key: name for name, members in shards for t in members}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _as_pth(folder: Path, anchor: Checkpoint) -> list[WrittenFile]:
    """Turn the merged safetensors file into a `.pth` file, or one per part as the anchor has it."""
    if anchor.part_files:
        paths = write_parts(folder, folder / WEIGHTS, anchor)
        (folder / WEIGHTS).unlink()
        return [WrittenFile(p.name, sha256_of(p), p.stat().st_size) for p in paths]
    plain = not (anchor.path or anchor.prefix or anchor.parts)
    path = folder / (BIN if plain and anchor.architecture else PTH)
    write_pth(path, folder / WEIGHTS, anchor)
    (folder / WEIGHTS).unlink()
    return [WrittenFile(path.name, sha256_of(path), path.stat().st_size)]


def sha256_of(path: Path) -> str:
    """The checksum of a file, as the Hub computes it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
