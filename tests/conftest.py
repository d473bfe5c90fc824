"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Nothing in the suite may ask a real Hub for anything.
os.environ.setdefault("HF_ENDPOINT", "http://127.0.0.1:9")
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun with `&`: programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

from hub.fixtures import hub as hub
from stories import lwmm as lwmm
from stories import tiny as tiny

collect_ignore = ["bench"]  # programs that `make bench` runs

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    """Tiny forward passes are many times slower where threads fight for two busy cores."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


@pytest.fixture
def shared() -> Path:
    """The design material beside the project; tests on it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared is absent")
    return SHARED
