"""Run a plan: workers make ranges of the output and write them, the caller hashes in order.

Where the caller would wait for a range (half precisions take longer to add than to hash), it makes
one that no worker has begun.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
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
    """One file of the output: its tensors, its header, and its opened descriptor."""

    tensors: Sequence[OutputTensor]
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
        threads: workers that read, add and write, beside the caller, which hashes and helps.
            Default: cores less one.
        chunk: bytes of output made at once; the default keeps all buffers within 24 MiB.
        progress: called with the bytes of output made since the last call.

    Raises:
        MergeError: NaN or infinity in a parent, or a value that the output's dtype cannot hold.
        CheckpointError: a parent's file changed while it was read.
    """
    workers = threads or max(1, min(4, (os.cpu_count() or 1) - 1))
    in_flight = workers + 3
    models = len(checkpoints)
    buffers = in_flight + (workers + 1) * (models + 3)
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

        crew = stack.enter_context(_Crew(workers, make))
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
                while not task.is_done() and crew.help():
                    pass
                made = task.wait()
                digest.update(made)
                free.append(task.room)
                if progress is not None:
                    progress(len(made))

            for work in cut(segments, len(target.header), size):
                if not free:
                    finish()
                pending.append(_Task(work, free.popleft(), target.descriptor))
                crew.give(pending[-1])
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

    def is_done(self) -> bool:
        """Whether `wait` would not wait."""
        return not self.done.locked()

    def wait(self) -> memoryview:
        """What was made, or the error it ended with."""
        self.done.acquire()
        if self.error is not None:
            raise self.error
        return self.made


class _Crew:
    """Threads that do tasks in turn, and stop at once where the caller fails; the caller helps."""

    def __init__(self, workers: int, make: Callable[[_Task], None]) -> None:
        self._make = make
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads = [
            Thread(target=self._work, name="lwmm-merge", daemon=True) for _ in range(workers)
        ]

    def __enter__(self) -> _Crew:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(Empty):
            while True:
                self._tasks.get_nowait()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def give(self, task: _Task) -> None:
        """Put a task last in turn."""
        self._tasks.put(task)

    def help(self) -> bool:
        """Do one task in this thread; False where all have been begun."""
        try:
            task = self._tasks.get_nowait()
        except Empty:
            return False
        assert task is not None
        self._do(task)
        return True

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._do(task)

    def _do(self, task: _Task) -> None:
        try:
            self._make(task)
        except BaseException as error:  # noqa: BLE001  raised where it is waited for
            task.error = error
        task.done.release()
