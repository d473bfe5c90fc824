"""Run a plan: workers make ranges of the output and write them, the caller hashes in order."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from lwmm_hub.checkpoint import Checkpoint
from lwmm_hub.merging.arithmetic import Kitchen, Slot, make_range
from lwmm_hub.merging.moments import mixture_statistics
from lwmm_hub.merging.positional import reserve, write_at
from lwmm_hub.merging.segments import OpenFiles, OutputTensor, Range, cut, join, segments_of
from lwmm_hub.planning import MergedTensor, MergePlan

CHUNK = 1 << 20
MEMORY = 24 << 20  # for all buffers together

Progress = Callable[[int], None]


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
    in_flight = workers + 2
    models = len(checkpoints)
    buffers = in_flight + workers * (models + 3)
    size = chunk or max(1 << 16, min(CHUNK, MEMORY // buffers & ~0xFFFF))
    by_key: dict[str, list[MergedTensor]] = {}
    for tensor in plan.merged:
        by_key.setdefault(tensor.key, []).append(tensor)
    moments = mixture_statistics(plan, checkpoints) if plan.options.batch_norm == "moment" else {}
    with ExitStack() as stack:
        files = OpenFiles(checkpoints, stack)
        kitchen = Kitchen(files, [c.label for c in checkpoints], plan.options.allow_nonfinite)
        local = threading.local()
        pool = stack.enter_context(_workers(workers))
        free = deque(memoryview(bytearray(size)) for _ in range(in_flight))

        def make(work: Range, room: memoryview, descriptor: int) -> memoryview:
            if not hasattr(local, "slot"):
                local.slot = Slot(size, models)
            local.slot.result = room
            made = make_range(work, local.slot, kitchen)
            write_at(descriptor, made, work.offset)
            return made

        hashes = []
        for target in targets:
            digest = hashlib.sha256(target.header)
            reserve(target.descriptor, len(target.header) + sum(t.size for t in target.tensors))
            write_at(target.descriptor, memoryview(target.header), 0)
            segments = join(
                segment
                for tensor in target.tensors
                for segment in segments_of(tensor, by_key.get(tensor.key, ()), files, moments)
            )
            pending: deque[tuple[Future[memoryview], memoryview]] = deque()

            def finish(
                pending: deque[tuple[Future[memoryview], memoryview]] = pending,
                digest: Any = digest,
            ) -> None:
                future, room = pending.popleft()
                made = future.result()
                digest.update(made)
                free.append(room)
                if progress is not None:
                    progress(len(made))

            for work in cut(segments, len(target.header), size):
                if not free:
                    finish()
                room = free.popleft()
                pending.append((pool.submit(make, work, room, target.descriptor), room))
            while pending:
                finish()
            hashes.append(digest.hexdigest())
    return hashes


@contextmanager
def _workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that stop at once when the caller fails or is interrupted."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="lwmm-merge")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
