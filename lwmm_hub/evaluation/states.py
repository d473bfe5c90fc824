"""Half-done evaluations on disk, so that an interrupted one goes on; and the memory they took."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lwmm_hub.small_files import read_small_text

MAX_STATE = 2 << 30  # bytes; of detections it holds the boxes of every image
_MAX_STATUS = 1 << 20
VERSION = 5  # goes up where the same run counts otherwise than before: no old state is taken then


def states_folder() -> Path:
    """Where states are kept: `LWMM_HUB_CACHE`, else the user's cache folder."""
    own = os.environ.get("LWMM_HUB_CACHE")
    if own:
        return Path(own).expanduser() / "evaluations"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lwmm-hub" / "evaluations"


def state_key(settings: Mapping[str, Any]) -> str:
    """The name of a state: equal settings, equal name."""
    text = json.dumps({"version": VERSION, **settings}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_state(folder: Path, key: str) -> dict[str, Any] | None:
    """A state that was written before, None where there is none that can be used."""
    try:
        state = json.loads(read_small_text(folder / f"{key}.json", MAX_STATE))
    except (OSError, ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) else None


def write_state(folder: Path, key: str, state: Mapping[str, Any]) -> None:
    """Replace a state at once; a disk that cannot be written only costs the way back."""
    fresh = folder / f"{key}.{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(state), encoding="utf-8")
        fresh.replace(folder / f"{key}.json")
    except OSError:
        with suppress(OSError):
            fresh.unlink()


def forget_peak() -> None:
    """Begin to measure peak memory anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> float | None:
    """Peak resident memory in MB of 10**6 bytes; None where the system does not say (Windows).

    Since `forget_peak` on Linux, else of the whole process.
    """
    try:
        for line in read_small_text(Path("/proc/self/status"), _MAX_STATUS).splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
