"""The command line: arguments -> pipeline -> output. All the work is in the library."""

from __future__ import annotations

import os

# No BLAS is used where it could gain from threads; numpy reads this once, when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from lwmm_hub.cli.commands import main

__all__ = ["main"]
