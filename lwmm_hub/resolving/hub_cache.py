"""Which commit a branch was when it was last asked for: noted in the Hub's cache, for offline use.

The client notes it for downloads by branch alone; ours are all pinned to a commit.
"""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants


def cache_of(repo: str, kind: str = "model") -> Path:
    """The folder of a repository in the Hub's cache, whose layout is documented.

    Args:
        repo: `org/name`.
        kind: `model` or `dataset`.
    """
    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}"


def remember(repo: str, revision: str | None, commit: str, kind: str = "model") -> None:
    """Note which commit a revision is, as the client does.

    Args:
        repo: `org/name`.
        revision: a branch, a tag or a commit; None is the newest.
        commit: 40 hex digits.
        kind: `model` or `dataset`.
    """
    note = _note(repo, revision, kind)
    if note is None or revision == commit:
        return
    with suppress(OSError):  # a cache that is read-only is a cache
        if not note.is_file() or note.read_text() != commit:
            note.parent.mkdir(parents=True, exist_ok=True)
            fresh = note.with_name(f"{note.name}.{secrets.token_hex(4)}.tmp")
            fresh.write_text(commit)
            fresh.replace(note)


def remembered(repo: str, revision: str | None, kind: str = "model") -> str | None:
    """The commit that a revision was when it was last asked for; None where nobody knows."""
    note = _note(repo, revision, kind)
    commit = revision or ""
    if note is not None and note.is_file():
        commit = note.read_text().strip()
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None


def _note(repo: str, revision: str | None, kind: str) -> Path | None:
    """Where it is noted; None where the revision is no name of a file."""
    parts = (revision or constants.DEFAULT_REVISION).split("/")
    if not all(re.fullmatch(r"[^\\\0]+", part) and part not in (".", "..") for part in parts):
        return None
    return cache_of(repo, kind).joinpath("refs", *parts)
