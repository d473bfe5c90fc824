"""The command line: arguments -> pipeline -> output. All the work is in the library."""

from __future__ import annotations

import gc
import os
import signal
import sys

TYPE_CHECKING = False  # as in `typing`, whose import takes longer than all that is done here
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

# No BLAS is used where it could gain from threads; numpy reads this once, when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `lwmm-hub`; ends the process with the exit code of the interface."""
    _on_interrupt(_end)  # while modules are imported nothing is begun that would have to be undone
    # A command makes many values and few cycles: looking for those often costs CPU for nothing.
    gc.set_threshold(200_000, 20, 20)
    from lwmm_hub.cli.commands import run

    try:
        _on_interrupt(signal.default_int_handler)
        code = run(arguments)
        _on_interrupt(signal.SIG_IGN)  # all is done: an interrupt comes too late
    except KeyboardInterrupt:  # just before or after the command, which answers for itself
        _end()
    gc.freeze()  # at its end the interpreter would look through all that is left
    sys.exit(code)


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
