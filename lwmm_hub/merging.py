"""Run a plan over bytes: chunked, threaded, in a few MiB of memory whatever the models' size.

The output is cut into ranges. For each range a worker reads the anchor's and the donors' bytes
(neighbours in one call), adds them with their layers' weights, and writes the result at its place;
the caller hashes the ranges in order meanwhile. Every element is

    theta_anchor - sum over donors of H_i (theta_anchor - theta_i)

in float32 (float64 where a float64 takes part), summed in the order of the donors and rounded once,
to nearest even. This form gives a parameter back bit for bit where all models agree, signed zeros
included. The result depends neither on the number of threads nor on the size of the ranges.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.checkpoint import DTYPES, MERGEABLE, Checkpoint, tensor_bytes
from lwmm_hub.checkpoint.entries import open_flags
from lwmm_hub.errors import CheckpointError, MergeError
from lwmm_hub.floats import all_finite, narrow, sum_dtype, view, widen
from lwmm_hub.key_map import Source
from lwmm_hub.planning import MergedTensor, MergePlan, output_dtype

CHUNK = 1 << 20
MEMORY = 24 << 20  # for all buffers together

Progress = Callable[[int], None]


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the result: where it comes from and how it is stored."""

    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes in the output."""
        return tensor_bytes(self.dtype, self.shape)


def output_tensors(plan: MergePlan, anchor: Checkpoint) -> list[OutputTensor]:
    """The tensors of the result in the order they are stored.

    A safetensors anchor gives its own order, so that reading it is one sweep; a `.pth` file's order
    of registration is kept within each element size, large ones first, so that all are aligned.
    """
    entries = list(anchor.entries.values())
    tensors = [
        OutputTensor(e.key, output_dtype(e.dtype, plan.options.dtype), e.shape) for e in entries
    ]
    aligned = anchor.format == "safetensors" and plan.options.dtype == "auto"
    if not aligned or len(anchor.files) > 1:
        tensors.sort(key=lambda t: -DTYPES[t.dtype][0])
    return tensors


# ---------------------------------------------------------------------- what a range is made of


@dataclass(frozen=True)
class Ingredient:
    """One model's share of a segment: `file` counts the opened files, `offset` is absolute."""

    file: int
    offset: int
    dtype: str
    weight: float
    model: int


@dataclass(frozen=True)
class Segment:
    """A stretch of one output tensor whose elements all have the same ingredients."""

    key: str
    dtype: str
    elements: int
    anchor: Ingredient
    donors: tuple[Ingredient, ...]
    computed: NDArray[Any] | None = None  # values made beforehand (batch-norm moments)


@dataclass
class Piece:
    """Part of a segment inside one range."""

    segment: Segment
    skip: int  # elements of the segment before it
    elements: int
    at: int  # byte in the range's result


@dataclass
class Range:
    """A range of one output file, made by one worker call."""

    offset: int
    size: int
    pieces: list[Piece] = field(default_factory=list)


class OpenFiles:
    """The parents' files as descriptors, each opened once."""

    def __init__(self, checkpoints: Sequence[Checkpoint], stack: ExitStack) -> None:
        self.descriptors: list[int] = []
        self._numbers: dict[tuple[int, str], int] = {}
        self._checkpoints = checkpoints
        self._stack = stack
        self.names: list[str] = []

    def number(self, model: int, file: str) -> int:
        """The index of a model's file among the opened ones."""
        if (model, file) not in self._numbers:
            reader = self._checkpoints[model].readers[file]
            descriptor = getattr(reader, "fd", None)
            if descriptor is None:
                path = getattr(reader, "path", None)
                if path is None:
                    raise CheckpointError(f"{file} is not on this machine: download it first.")
                descriptor = os.open(path, open_flags())
                self._stack.callback(os.close, descriptor)
            self._numbers[model, file] = len(self.descriptors)
            self.descriptors.append(descriptor)
            self.names.append(f"{self._checkpoints[model].label}: {file}")
        return self._numbers[model, file]


def _segments(
    tensor: OutputTensor,
    parameters: Sequence[MergedTensor],
    checkpoints: Sequence[Checkpoint],
    files: OpenFiles,
    moments: Mapping[str, NDArray[Any]],
) -> Iterator[Segment]:
    """How one output tensor is made: whole, or part by part where the anchor's is fused."""
    entry = checkpoints[0].entries[tensor.key]

    def ingredient(model: int, source: Source, weight: float) -> Ingredient:
        found = checkpoints[model].entries[source.key]
        offset = found.offset + found.size // source.parts * source.part
        return Ingredient(files.number(model, found.file), offset, found.dtype, weight, model)

    def segment(source: Source, parameter: MergedTensor | None) -> Segment:
        donors, own, computed = [], 1.0, None
        if parameter is not None:
            own = parameter.weights[0]
            computed = moments.get(parameter.name)
            donors = [
                ingredient(model, donor, weight)
                for model, (donor, weight) in enumerate(
                    zip(parameter.sources, parameter.weights, strict=True)
                )
                if model and donor is not None and weight
            ]
        return Segment(
            tensor.key,
            tensor.dtype,
            entry.elements // source.parts,
            ingredient(0, source, own),
            tuple(donors),
            computed,
        )

    by_part = {p.sources[0].part: p for p in parameters if p.sources[0]}
    parts = next((p.sources[0].parts for p in parameters if p.sources[0]), 1)
    for part in range(parts):
        yield segment(Source(tensor.key, part, parts), by_part.get(part))


def _cut(segments: Iterator[Segment], offset: int, chunk: int) -> list[Range]:
    """Cut a file into ranges of at most `chunk` result bytes, whatever the tensors."""
    ranges = [Range(offset, 0)]
    for segment in segments:
        width = DTYPES[segment.dtype][0] // 8
        skip = 0
        while skip < segment.elements:
            current = ranges[-1]
            room = (chunk - current.size) // width
            if room < min(segment.elements - skip, 64):
                ranges.append(Range(current.offset + current.size, 0))
                continue
            count = min(segment.elements - skip, room)
            current.pieces.append(Piece(segment, skip, count, current.size))
            current.size += count * width
            skip += count
    return [r for r in ranges if r.size]


# ---------------------------------------------------------------------- arithmetic


class Slot:
    """The buffers of one range in flight: the result, each donor's bytes, float scratch."""

    def __init__(self, chunk: int, models: int) -> None:
        self.result = memoryview(bytearray(chunk))
        self._raw: list[memoryview | None] = [None] * models
        self._scratch: list[NDArray[np.float64] | None] = [None] * 3
        self._chunk = chunk

    def raw(self, model: int, size: int) -> memoryview:
        """Room for the bytes of one model."""
        found = self._raw[model]
        if found is None or len(found) < size:
            found = self._raw[model] = memoryview(bytearray(max(size, self._chunk)))
        return found

    def scratch(self, which: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Room for `count` floats."""
        found = self._scratch[which]
        need = -(-count * dtype.itemsize // 8)
        if found is None or len(found) < need:
            found = self._scratch[which] = np.empty(max(need, self._chunk // 8), np.float64)
        return found.view(dtype)[:count]


@dataclass(frozen=True)
class Kitchen:
    """What every range needs: files, names for messages, whether NaN is allowed."""

    files: OpenFiles
    labels: Sequence[str]
    allow_nonfinite: bool


def _run(work: Range, slot: Slot, kitchen: Kitchen) -> memoryview:
    """Make one range of the output in `slot.result`."""
    places = _read_all(work, slot, kitchen)
    for index, piece in enumerate(work.pieces):
        _merge_piece(piece, places[index], slot, kitchen)
    return slot.result[: work.size]


def _read_all(work: Range, slot: Slot, kitchen: Kitchen) -> list[list[memoryview]]:
    """Read the bytes of all models of a range; neighbours in a file are read in one call.

    The anchor's bytes go straight to their place in the result where they are stored alike.

    Returns:
        per piece, the anchor's buffer and then the donors', each starting at the piece's bytes.
    """
    wanted: dict[int, list[tuple[int, int, int]]] = {}  # model -> (file, offset, size)
    direct = all(p.segment.anchor.dtype == p.segment.dtype for p in work.pieces)
    order: list[list[tuple[int, int]]] = []  # per piece: (model, place among the model's)
    for piece in work.pieces:
        row = []
        for part in (piece.segment.anchor, *piece.segment.donors):
            width = DTYPES[part.dtype][0] // 8
            mine = wanted.setdefault(part.model, [])
            row.append((part.model, len(mine)))
            mine.append((part.file, part.offset + piece.skip * width, piece.elements * width))
        order.append(row)
    starts: dict[int, list[int]] = {}
    buffers: dict[int, memoryview] = {}
    for model, items in wanted.items():
        at, positions = 0, []
        for _, _, size in items:
            positions.append(at)
            at += size
        starts[model] = positions
        buffers[model] = slot.result if model == 0 and direct else slot.raw(model, at)
        _read_runs(items, positions, buffers[model], kitchen.files)
    return [[buffers[model][starts[model][place] :] for model, place in row] for row in order]


def _read_runs(
    items: Sequence[tuple[int, int, int]],
    positions: Sequence[int],
    buffer: memoryview,
    files: OpenFiles,
) -> None:
    run_file, run_from, run_at, run_size = -1, 0, 0, 0
    for (file, offset, size), at in zip(items, positions, strict=True):
        if file == run_file and offset == run_from + run_size:
            run_size += size
            continue
        if run_size:
            read_at(files.descriptors[run_file], buffer[run_at : run_at + run_size], run_from)
        run_file, run_from, run_at, run_size = file, offset, at, size
    if run_size:
        read_at(files.descriptors[run_file], buffer[run_at : run_at + run_size], run_from)


def _merge_piece(piece: Piece, raw: Sequence[memoryview], slot: Slot, kitchen: Kitchen) -> None:
    """Make one piece of the result from the models' bytes."""
    segment, count = piece.segment, piece.elements
    stored = segment.anchor.dtype
    if stored not in MERGEABLE:
        if raw[0].obj is not slot.result.obj:
            size = count * DTYPES[stored][0] // 8
            slot.result[piece.at : piece.at + size] = raw[0][:size]
        return
    out = view(slot.result, segment.dtype, count, piece.at)
    real = sum_dtype({stored, segment.dtype, *(d.dtype for d in segment.donors)})
    mine = _floats(raw[0], stored, count, real, slot, 0)
    if segment.computed is not None:
        mine = segment.computed[piece.skip : piece.skip + count].astype(real)
    elif segment.donors:
        mine = _weighted(mine, segment, raw, real, slot, kitchen)
    if not kitchen.allow_nonfinite and not all_finite(mine):
        mine = _explain_nonfinite(segment, piece, real, kitchen)
    if not segment.donors and segment.computed is None and stored == segment.dtype:
        if raw[0].obj is not slot.result.obj:
            np.copyto(out, view(raw[0], stored, count))
        return
    if segment.dtype in {"F32", "F64"} and mine.dtype == out.dtype:
        if not np.may_share_memory(mine, out):
            np.copyto(out, mine)
    elif not narrow(mine, segment.dtype, out):
        raise MergeError(
            f"{segment.key} has a merged value that is too large for "
            f"{DTYPES[segment.dtype][1]}. Pass --dtype float32 (or bfloat16)."
        )


def _floats(
    raw: memoryview, dtype: str, count: int, real: np.dtype[Any], slot: Slot, which: int
) -> NDArray[Any]:
    """A model's elements as `real`: a view of its bytes where they are stored so."""
    stored = view(raw, dtype, count)
    if stored.dtype == real:
        return stored
    return widen(stored, dtype, slot.scratch(which, count, real))


def _weighted(
    mine: NDArray[Any],
    segment: Segment,
    raw: Sequence[memoryview],
    real: np.dtype[Any],
    slot: Slot,
    kitchen: Kitchen,
) -> NDArray[Any]:
    """theta_anchor - sum of H_i (theta_anchor - theta_i), in place of the anchor's elements."""
    total: NDArray[Any] | None = None
    with np.errstate(over="ignore", invalid="ignore"):
        for donor, data in zip(segment.donors, raw[1:], strict=True):
            theirs = _floats(data, donor.dtype, len(mine), real, slot, 1 if total is None else 2)
            equal = kitchen.allow_nonfinite and mine == theirs
            np.subtract(mine, theirs, out=theirs)
            if equal is not False:  # infinity - infinity is no difference
                theirs[equal] = 0
            theirs *= real.type(donor.weight)
            if total is None:
                total = theirs
            else:
                total += theirs
        if total is not None:
            np.subtract(mine, total, out=mine)
    return mine


def _explain_nonfinite(
    segment: Segment, piece: Piece, real: np.dtype[Any], kitchen: Kitchen
) -> NDArray[Any]:
    """Name the parent that has NaN or infinity; where none has, add again in double precision.

    Raises:
        MergeError: which parent, which tensor.
    """
    values = []
    for part in (segment.anchor, *segment.donors):
        width = DTYPES[part.dtype][0] // 8
        buffer = memoryview(bytearray(piece.elements * width))
        descriptor = kitchen.files.descriptors[part.file]
        read_at(descriptor, buffer, part.offset + piece.skip * width)
        values.append(view(buffer, part.dtype, piece.elements).astype(np.float64))
        if not np.isfinite(values[-1]).all():
            what = "NaN" if np.isnan(values[-1]).any() else "infinite values"
            raise MergeError(
                f"{kitchen.labels[part.model]} has {what} in {segment.key}. Use a sound copy of "
                "the model, or pass --allow-nonfinite to merge it all the same."
            )
    total = values[0].copy()
    for donor, value in zip(segment.donors, values[1:], strict=True):
        total -= donor.weight * (values[0] - value)
    if segment.computed is not None or not np.isfinite(total.astype(real)).all():
        raise MergeError(
            f"{segment.key} has merged values beyond the range of {real.name}. Pass "
            "--allow-nonfinite to store them as infinity."
        )
    result: NDArray[Any] = total.astype(real)
    return result


# ---------------------------------------------------------------------- moments


def _moments(plan: MergePlan, checkpoints: Sequence[Checkpoint]) -> dict[str, NDArray[Any]]:
    """Mean and variance of the mixture for every batch norm: mu = sum w mu_i,
    var = sum w (var_i + (mu_i - mu)^2). Small vectors, so they are made whole, in double precision.
    """  # noqa: D205
    found: dict[str, NDArray[Any]] = {}
    by_name = {tensor.name: tensor for tensor in plan.merged}
    for name, mean in by_name.items():
        if mean.statistic != "running_mean" or sum(1 for w in mean.weights if w) < 2:
            continue
        means = _vectors(mean, checkpoints)
        mixed = sum(w * v for w, v in zip(mean.weights, means, strict=True) if v is not None)
        found[name] = _store(mixed, means)
        variance = by_name.get(name.removesuffix("running_mean") + "running_var")
        if variance is not None:
            spreads = _vectors(variance, checkpoints)
            mixed_spread = sum(
                w * (s + (m - mixed) ** 2)
                for w, s, m in zip(variance.weights, spreads, means, strict=True)
                if s is not None and m is not None
            )
            found[variance.name] = _store(mixed_spread, spreads)
    return found


def _vectors(
    tensor: MergedTensor, checkpoints: Sequence[Checkpoint]
) -> list[NDArray[np.float64] | None]:
    vectors: list[NDArray[np.float64] | None] = []
    for source, weight, checkpoint in zip(tensor.sources, tensor.weights, checkpoints, strict=True):
        if source is None or not weight:
            vectors.append(None)
            continue
        entry = checkpoint.entries[source.key]
        raw = view(checkpoint.read(entry), entry.dtype, entry.elements)
        vectors.append(raw.astype(np.float64))
    return vectors


def _store(values: Any, parents: Sequence[NDArray[np.float64] | None]) -> NDArray[Any]:
    """float32, and exactly the anchor's where all parents agree."""
    there = [v for v in parents if v is not None]
    same = np.logical_and.reduce([v == there[0] for v in there])
    return np.where(same, there[0], values).astype(np.float32)


# ---------------------------------------------------------------------- streaming


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
            count = os.pwrite(descriptor, buffer, offset)
        else:
            with _SEEK:
                os.lseek(descriptor, offset, os.SEEK_SET)
                count = os.write(descriptor, buffer)
        buffer, offset = buffer[count:], offset + count


_SEEK = threading.Lock()  # where the system has no positional reads, seek and read are one step


@dataclass(frozen=True)
class TargetFile:
    """One file of the output: its tensors, where each starts, and its opened descriptor."""

    tensors: Sequence[OutputTensor]
    starts: Sequence[int]
    header: bytes
    descriptor: int


def merge_files(
    plan: MergePlan,
    checkpoints: Sequence[Checkpoint],
    targets: Sequence[TargetFile],
    threads: int | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Run the plan, writing the output files; their sha256 are returned in order.

    Args:
        plan: what to do.
        checkpoints: the parents, opened on this machine, in the plan's order.
        targets: the output's files; their tensors are those of `output_tensors`, in order.
        threads: workers that read, add and write; the caller hashes. Default: cores less one.
        chunk: bytes of output made at once; the default keeps all buffers within 24 MiB.
        progress: called with the bytes of output made since the last call.

    Raises:
        MergeError: NaN or infinity in a parent, or a value that the output's dtype cannot hold.
        CheckpointError: a parent's file changed while it was read.
    """
    workers = threads or max(1, min(4, (os.cpu_count() or 1) - 1))
    slots = workers + 2
    models = len(checkpoints)
    size = chunk or max(1 << 16, min(CHUNK, MEMORY // (slots * (models + 2)) & ~0xFFFF))
    by_key: dict[str, list[MergedTensor]] = {}
    for tensor in plan.merged:
        by_key.setdefault(tensor.key, []).append(tensor)
    moments = _moments(plan, checkpoints) if plan.options.batch_norm == "moment" else {}
    with ExitStack() as stack:
        files = OpenFiles(checkpoints, stack)
        kitchen = Kitchen(files, [c.label for c in checkpoints], plan.options.allow_nonfinite)
        pool = stack.enter_context(_workers(workers))
        free = deque(Slot(size, models) for _ in range(slots))
        hashes = []
        for target in targets:
            digest = hashlib.sha256(target.header)
            write_at(target.descriptor, memoryview(target.header), 0)
            segments = (
                segment
                for tensor in target.tensors
                for segment in _segments(
                    tensor, by_key.get(tensor.key, ()), checkpoints, files, moments
                )
            )
            pending: deque[tuple[Future[memoryview], Slot]] = deque()

            def finish(
                pending: deque[tuple[Future[memoryview], Slot]] = pending,
                digest: Any = digest,
            ) -> None:
                future, slot = pending.popleft()
                made = future.result()
                digest.update(made)
                free.append(slot)
                if progress is not None:
                    progress(len(made))

            for work in _cut(segments, len(target.header), size):
                if not free:
                    finish()
                slot = free.popleft()
                job = pool.submit(_make, work, slot, kitchen, target.descriptor)
                pending.append((job, slot))
            while pending:
                finish()
            hashes.append(digest.hexdigest())
    return hashes


def _make(work: Range, slot: Slot, kitchen: Kitchen, descriptor: int) -> memoryview:
    made = _run(work, slot, kitchen)
    write_at(descriptor, made, work.offset)
    return made


@contextmanager
def _workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that stop at once when the caller fails or is interrupted."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="lwmm-merge")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
