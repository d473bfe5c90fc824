"""Half-done evaluations on disk, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERSION = 1


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
        state = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) else None


def write_state(folder: Path, key: str, state: Mapping[str, Any]) -> None:
    """Replace a state at once; a disk that cannot be written only costs the way back."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=folder, prefix=f"{key}.", suffix=".tmp", delete=False, encoding="utf-8"
        ) as file:
            json.dump(state, file)
        Path(file.name).replace(folder / f"{key}.json")
    except OSError:
        return
