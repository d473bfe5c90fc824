"""What a merged model says of itself, and whether it is that: merge again, compare checksums."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwmm_hub.checkpoint import SIDE_FILES
from lwmm_hub.errors import OutputError, ResolveError, VerificationError
from lwmm_hub.manifest import read_manifest
from lwmm_hub.merging import Progress
from lwmm_hub.pipeline import Approval
from lwmm_hub.publishing import public_config
from lwmm_hub.recipe import Recipe
from lwmm_hub.reference import ModelReference
from lwmm_hub.rerunning import fetch_merge, merge_recipe, recipe_in
from lwmm_hub.writing import MANIFEST, RECIPE, sha256_of


@dataclass(frozen=True)
class Verified:
    """A model whose weights are what its recipe gives: file -> sha256.

    `warnings` are those of the new merge that the first one had not.
    """

    target: str
    files: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def verify(
    target: str | Path,
    *,
    parents: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    approve: Approval | None = None,
) -> Verified:
    """Merge again from the pinned recipe of a folder or repository and compare sha256.

    Three things have to agree: the weight files as they are, the manifest's checksums, and the
    checksums of a new merge. The files beside the weights, which say what these mean, have to be
    those of the new merge, too.

    Args:
        target: a merged folder, or `org/name` on the Hub.
        parents: label, or `org/name` of one that the Hub does not have any more -> path.
        threads: workers.
        progress: called with the bytes made since the last call.
        approve: called with the plan before it is merged again.

    Raises:
        VerificationError: a checksum or a file beside the weights differs.
        OutputError: the target was not written by lwmm-hub.
    """
    reference = ModelReference.parse(str(target))
    actual: dict[str, str] = {}
    if reference.on_hub:
        fetched = fetch_merge(reference)
        if fetched is None:
            raise OutputError(
                f"{reference} has no {MANIFEST} and {RECIPE}: it was not pushed by lwmm-hub."
            )
        folder, actual = fetched
        if not actual:
            raise ResolveError(f"{reference} holds no safetensors files to compare.")
    else:
        folder = Path(reference.location)
    manifest = read_manifest(folder)
    said = _said(manifest, str(target))
    if not reference.on_hub:
        actual = {name: sha256_of(folder / name) for name in said if (folder / name).is_file()}
    _compare(str(target), "the files in place", actual, said)
    recipe = recipe_in(folder, reference)
    with tempfile.TemporaryDirectory(prefix="lwmm-verify-") as scratch:
        result = merge_recipe(
            recipe, output=Path(scratch) / "again", threads=threads, progress=progress,
            parents=parents, approve=approve,
        )  # fmt: skip
        _compare(str(target), "a new merge from the recipe", result.files, said)
        _compare_beside(str(target), folder, result.folder)
    known = manifest["plan"]["warnings"]
    return Verified(str(target), said, tuple(w for w in result.warnings if w not in known))


def find_merge(reference: ModelReference) -> tuple[dict[str, Any], Recipe] | None:
    """The manifest and the recipe of a folder or repository; None where lwmm-hub wrote neither.

    Raises:
        OutputError: the manifest is damaged.
        RecipeError: the recipe is.
        ResolveError: there is no such repository.
    """
    if reference.on_hub:
        fetched = fetch_merge(reference)
        if fetched is None:
            return None
        folder, _ = fetched
    else:
        folder = Path(reference.location)
        if not (folder / MANIFEST).is_file():
            return None
    return read_manifest(folder), recipe_in(folder, reference)


def _said(manifest: Mapping[str, Any], target: str) -> dict[str, str]:
    """Weight file -> sha256, as a manifest has them.

    Raises:
        OutputError: it has none.
    """
    try:
        files = {str(n): str(f["sha256"]) for n, f in manifest["output"]["files"].items()}
    except (KeyError, TypeError, AttributeError):
        files = {}
    if not files or any("/" in name or "\\" in name or name.startswith(".") for name in files):
        raise OutputError(f"{target}: its {MANIFEST} lists no weight files. Merge again.")
    return files


def _compare(target: str, what: str, found: Mapping[str, str], said: Mapping[str, str]) -> None:
    for name, digest in said.items():
        if found.get(name) != digest:
            got = found.get(name, "no such file")
            raise VerificationError(
                f"{target} is not what its recipe says: {name} has sha256 {got[:16]}... in {what}, "
                f"the manifest says {digest[:16]}.... Do not trust this copy; merge again."
            )
    if extra := sorted(found.keys() - said.keys()):
        raise VerificationError(f"{target}: {extra[0]} is in {what}, but not in the manifest.")


def _compare_beside(target: str, folder: Path, again: Path) -> None:
    """Configuration, image processor and tokenizer are those that the anchor gives."""
    for name in SIDE_FILES:
        if _content(folder / name) != _content(again / name):
            raise VerificationError(
                f"{target} is not what its recipe says: its {name} is not the one of a new merge "
                "from the recipe. Do not trust this copy; merge again."
            )


def _content(path: Path) -> bytes | None:
    """What a file beside the weights holds, as a push would change it; None where there is none."""
    if not path.is_file():
        return None
    try:
        return public_config(path) if path.name == "config.json" else path.read_bytes()
    except ValueError:  # no JSON
        return path.read_bytes()
