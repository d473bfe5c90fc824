"""The command line: arguments -> pipeline -> output. All the work is in the library."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

# No BLAS is used where it could gain from threads; numpy reads this once, when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `lwmm-hub`; ends the process with the exit code of the interface."""
    # A command makes many values and few cycles: looking for those often costs CPU for nothing.
    gc.set_threshold(200_000, 20, 20)
    try:
        from lwmm_hub.cli.commands import run

        code = run(arguments)
    except KeyboardInterrupt:  # while modules were imported
        sys.stderr.write("lwmm-hub: interrupted\n")
        code = 130
    with suppress(ValueError):  # only the main thread may say so
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done: an interrupt comes too late
    sys.exit(code)


__all__ = ["main"]
