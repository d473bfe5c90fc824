"""Run a plan: workers make ranges of the output and write them, the caller hashes in order."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from lwmm_hub.checkpoint import Checkpoint
from lwmm_hub.merging.arithmetic import Kitchen, Slot, make_range
from lwmm_hub.merging.moments import mixture_statistics
from lwmm_hub.merging.positional import reserve, write_at
from lwmm_hub.merging.segments import OpenFiles, OutputTensor, Range, cut, join, segments_of
from lwmm_hub.planning import MergedTensor, MergePlan

CHUNK = 1 << 20
MEMORY = 24 << 20  # for all buffers together

Progress = Callable[[int], None]


class TargetFile(NamedTuple):
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

        def make(task: _Task) -> None:
            if not hasattr(local, "slot"):
                local.slot = Slot(size, models)
            local.slot.result = task.room
            task.made = make_range(task.work, local.slot, kitchen)
            write_at(task.descriptor, task.made, task.work.offset)

        give = stack.enter_context(_workers(workers, make))
        free = deque(memoryview(bytearray(size)) for _ in range(in_flight))
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
            pending: deque[_Task] = deque()

            def finish(pending: deque[_Task] = pending, digest: Any = digest) -> None:
                task = pending.popleft()
                made = task.wait()
                digest.update(made)
                free.append(task.room)
                if progress is not None:
                    progress(len(made))

            for work in cut(segments, len(target.header), size):
                if not free:
                    finish()
                pending.append(_Task(work, free.popleft(), target.descriptor))
                give(pending[-1])
            while pending:
                finish()
            hashes.append(digest.hexdigest())
    return hashes


class _Task:
    """A range to make in `room` and to write; the caller waits for it.

    As a future of `concurrent.futures`, which takes longer to hand over than a small range to make.
    """

    def __init__(self, work: Range, room: memoryview, descriptor: int) -> None:
        self.work, self.room, self.descriptor = work, room, descriptor
        self.made = room[:0]
        self.error: BaseException | None = None
        self.done = threading.Lock()  # held until it is
        self.done.acquire()

    def wait(self) -> memoryview:
        """What was made, or the error it ended with."""
        self.done.acquire()
        if self.error is not None:
            raise self.error
        return self.made


@contextmanager
def _workers(count: int, make: Callable[[_Task], None]) -> Iterator[Callable[[_Task], None]]:
    """Threads that take tasks in turn, and stop at once where the caller fails."""
    tasks: SimpleQueue[_Task | None] = SimpleQueue()

    def run() -> None:
        while (task := tasks.get()) is not None:
            try:
                make(task)
            except BaseException as error:  # noqa: BLE001  raised where it is waited for
                task.error = error
            task.done.release()

    threads = [Thread(target=run, name="lwmm-merge", daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
        yield tasks.put
    finally:
        with suppress(Empty):
            while True:
                tasks.get_nowait()
        for _ in threads:
            tasks.put(None)
        for thread in threads:
            if thread.ident is not None:
                thread.join()
