"""What the Hub said when it was last asked: noted in its cache, for offline use.

Which commit a branch was, and the checksums of weights that were not downloaded. The client notes
commits for downloads by branch alone; ours are all pinned to a commit.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants

from lwmm_hub.reference import is_commit
from lwmm_hub.small_files import read_small

_MAX_NOTE = 1 << 20


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
    _write(note, commit)


def remember_checksums(repo: str, commit: str, checksums: Mapping[str, str]) -> None:
    """Note which sha256 the Hub has of the weight files of a commit, in a folder of our own.

    Args:
        repo: `org/name`.
        commit: 40 hex digits.
        checksums: file -> sha256.
    """
    _write(_sums(repo, commit), json.dumps(checksums, indent=1, sort_keys=True))


def remembered_checksums(repo: str, commit: str) -> dict[str, str] | None:
    """What `remember_checksums` noted; None where it noted nothing.

    Args:
        repo: `org/name`.
        commit: 40 hex digits.
    """
    try:
        found = json.loads(read_small(_sums(repo, commit), _MAX_NOTE))
    except (OSError, ValueError, RecursionError):
        return None
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else None


def keep_sound(file: Path, sha256: str) -> bool:
    """Whether a file of the cache is what the Hub has; one that is not is taken out of it.

    The client compares the length alone where a download does not go over Xet.

    Args:
        file: as the client gave it: where there are links, one to its content.
        sha256: of the Hub.
    """
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() == sha256:
        return True
    file.resolve().unlink()
    file.unlink(missing_ok=True)
    return False


def _sums(repo: str, commit: str) -> Path:
    return cache_of(repo) / "lwmm-hub" / f"{commit}.json"


def _write(note: Path, text: str) -> None:
    with suppress(OSError):  # a cache that is read-only is a cache
        if not note.is_file() or note.read_text() != text:
            note.parent.mkdir(parents=True, exist_ok=True)
            fresh = note.with_name(f"{note.name}.{secrets.token_hex(4)}.tmp")
            fresh.write_text(text)
            fresh.replace(note)


def remembered(repo: str, revision: str | None, kind: str = "model") -> str | None:
    """The commit that a revision was when it was last asked for; None where nobody knows."""
    note = _note(repo, revision, kind)
    commit = revision or ""
    if note is not None and note.is_file():
        commit = note.read_text().strip()
    return commit if is_commit(commit) else None


def _note(repo: str, revision: str | None, kind: str) -> Path | None:
    """Where it is noted; None where the revision is no name of a file."""
    parts = (revision or constants.DEFAULT_REVISION).split("/")
    if not all(re.fullmatch(r"[^\\\0]+", part) and part not in (".", "..") for part in parts):
        return None
    return cache_of(repo, kind).joinpath("refs", *parts)
