"""The command line: arguments -> pipeline -> output. All the work is in the library."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys

TYPE_CHECKING = False  # as in `typing`, whose import takes longer than all that is done here
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn, TextIO

# No BLAS is used where it could gain from threads; numpy reads this once, when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `lwmm-hub`; ends the process with the exit code of the interface.

    Given arguments, from Python, it is left to the caller whether it ends: `SystemExit` is raised.
    """
    _on_interrupt(_end)  # while modules are imported nothing is begun that would have to be undone
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    if arguments is None:
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="replace")  # no code page of Windows has the plan's bars
        _keep_stdout_for_data()
    # A command makes many values and few cycles: looking for those often costs CPU for nothing.
    gc.set_threshold(200_000, 20, 20)
    from lwmm_hub.cli.commands import run

    try:
        _on_interrupt(signal.default_int_handler)
        code = run(arguments)
        _on_interrupt(signal.SIG_IGN)  # all is done: an interrupt comes too late
    except KeyboardInterrupt:  # just before or after the command, which answers for itself
        _end()
    if arguments is None:
        _leave(code)
    sys.exit(code)


def _keep_stdout_for_data() -> None:
    """Give `sys.stdout` a file descriptor of its own; what else is written to 1 goes to stderr.

    Native code of the Hub's client writes its log to 1 where it cannot write its files, at any time
    and from its own threads.
    """
    shown = sys.stdout
    try:
        if shown.fileno() != 1:
            return
        shown.flush()
        own = os.dup(1)
        os.dup2(2, 1)
    except (OSError, ValueError):  # one of the two is closed
        return
    lines = 1 if shown.isatty() else -1  # what is opened stays open to the end of the process
    sys.stdout = open(own, "w", lines, shown.encoding, shown.errors)  # noqa: PTH123, SIM115
    sys.__stdout__ = sys.stdout  # type: ignore[misc]  # it is kept where another takes its place


def _leave(code: int) -> NoReturn:
    """End the process without taking all values apart one by one, as the interpreter would.

    That takes a twentieth of the CPU of a whole merge, and the system frees their memory at once.
    Files that are written have to be closed by then.
    """
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads, or the disk is full
            code = code or 1
    os._exit(code)


def _nowhere() -> TextIO:
    """For a stream that was closed before we began (`>&-`)."""
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  pathlib is not needed yet


def _on_interrupt(answer: object) -> None:
    """Set what Ctrl-C does, unless it is ignored (`nohup`) or another thread decides."""
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, answer)  # type: ignore[arg-type]
    except ValueError:  # only the main thread may say so
        pass


def _end(*_: object) -> NoReturn:
    os.write(2, b"lwmm-hub: interrupted\n")
    os._exit(INTERRUPTED)


__all__ = ["main"]
