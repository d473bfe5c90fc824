"""What a push replaces that people wrote, and what of their changes it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lwmm_hub.card import card_files
from lwmm_hub.card.linting import FRONT_MATTER
from lwmm_hub.publishing.targets import fail, names_in
from lwmm_hub.writing import MANIFEST, sha256_of

CARD = "README.md"


def edited_card(folder: Path, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """A warning where a folder's card is not the one that is pushed but for what is local in it."""
    path = folder / CARD
    if not path.is_file() or _read(path) == card_files(manifest)[CARD]:
        return ()
    return (
        f"{CARD} in {folder} was changed since lwmm-hub wrote it, and that is not pushed: the card "
        f"is rendered from {MANIFEST}. Change it on the Hub, after the push.",
    )


def changed_beside(folder: Path, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """A warning where a file beside the weights is pushed that is another than was merged.

    Raises:
        PublishError: one is missing.
    """
    merged = manifest["output"].get("beside") or {}
    if missing := [name for name in merged if not (folder / name).is_file()]:
        fail(folder, f"{missing[0]} is missing beside its weights: merge again")
    changed = [name for name, sha256 in merged.items() if sha256_of(folder / name) != sha256]
    if not changed:
        return ()
    return (
        f"{', '.join(changed)} in {folder} was changed since the merge and is pushed so: it is not "
        "what card and recipe say, and 'lwmm-hub verify' will tell. Merge again to undo that.",
    )


def replaced_card(
    api: Any,
    repo: str,
    info: Any,
    earlier: Mapping[str, Any] | None,
    files: Mapping[str, bytes | Path],
) -> tuple[str, ...]:
    """A warning where the card of a repository was not written by lwmm-hub and is replaced.

    Args:
        api: of the Hub's client.
        repo: the repository.
        info: what the Hub says of it.
        earlier: the manifest that lies there.
        files: what is pushed.
    """
    if CARD not in names_in(info):
        return ()
    text = _read(Path(api.hf_hub_download(repo, CARD, revision=info.sha)))
    front = FRONT_MATTER.match(text)
    empty = not text[front.end() if front else 0 :].strip()  # as the Hub makes it with a licence
    if empty or text.encode() == files[CARD] or text == _rendered(earlier):
        return ()
    return (
        f"{CARD} of {repo} was edited there, or written by another version, and is replaced. It "
        f"was {api.endpoint}/{repo}/blob/{info.sha}/{CARD}",
    )


def _rendered(manifest: Mapping[str, Any] | None) -> str | None:
    """The card of a manifest; None where it is not one of this version."""
    try:
        return None if manifest is None else card_files(manifest)[CARD]
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")
