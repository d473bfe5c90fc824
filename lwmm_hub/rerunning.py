"""Run a recipe again: its parents found and checked, its decisions kept."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

from lwmm_hub.errors import (
    LwmmError,
    ModelReferenceError,
    RecipeError,
    UsageError,
    VerificationError,
)
from lwmm_hub.manifest import read_manifest
from lwmm_hub.merge_result import MergeResult
from lwmm_hub.merging import Progress
from lwmm_hub.pipeline import Approval, output_folder, run_merge
from lwmm_hub.planning import MergeOptions, MergePlan
from lwmm_hub.preparing import decide, open_models
from lwmm_hub.recipe import Recipe, RecipeModel, read_recipe
from lwmm_hub.reference import ModelReference
from lwmm_hub.writing import MANIFEST, sha256_of


def merge_recipe(
    recipe: str | os.PathLike[str] | Recipe,
    *,
    output: str | os.PathLike[str] = "merged",
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    parents: Mapping[str, str] | None = None,
    tags: Sequence[str] = (),
    approve: Approval | None = None,
) -> MergeResult:
    """Run a recipe again.

    Args:
        recipe: the file or its content.
        output: the folder.
        overwrite: replace an earlier merge of that name.
        threads: workers; the result does not depend on it.
        progress: called with the bytes made since the last call.
        parents: label -> path of parents that the recipe names by label only.
        tags: more tags for the card.
        approve: called with the plan before anything is downloaded whole or written.

    Raises:
        RecipeError: the recipe is wrong, with the line; or a local parent is not given.
    """
    started = time.monotonic()
    before: dict[str, str] | None = {}
    if not isinstance(recipe, Recipe):
        before, recipe = _files_beside(Path(recipe)), read_recipe(Path(recipe))
    models, options, kept = _of_recipe(recipe, parents or {})
    folder = output_folder(output)
    with _errors_in_place(recipe):
        result = run_merge(
            models,
            options,
            kept_parts=kept,
            output=folder,
            overwrite=overwrite,
            threads=threads,
            progress=progress,
            tags=tags,
            started=started,
            approve=approve,
            pairs_sha256=recipe.pairs_sha256,
            table=recipe.table,
        )
    if before in ({}, result.files):
        return result
    changed = "the weights are not those beside the recipe: a local model has changed since then."
    if before is None:
        changed = "the manifest beside the recipe was changed: no weights were compared with it."
    return replace(result, plan=replace(result.plan, warnings=(*result.warnings, changed)))


def _files_beside(recipe: Path) -> dict[str, str] | None:
    """sha256 of the weight files that the manifest beside a recipe names.

    Empty where there is no manifest, None where it is not what lwmm-hub writes.
    """
    if not (recipe.parent / MANIFEST).exists():
        return {}
    try:
        files = read_manifest(recipe.parent)["output"]["files"]
    except LwmmError:
        return None
    return {name: str(file["sha256"]) for name, file in files.items()}


def plan_recipe(
    recipe: str | os.PathLike[str] | Recipe, *, parents: Mapping[str, str] | None = None
) -> MergePlan:
    """What `merge_recipe` would do; nothing is downloaded whole or written."""
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(Path(recipe))
    models, options, kept = _of_recipe(recipe, parents or {})
    opened = open_models(
        models, options, download=False, kept_parts=kept, pairs_sha256=recipe.pairs_sha256
    )
    with _errors_in_place(recipe):
        return decide(replace(opened, table=recipe.table))


@contextmanager
def _errors_in_place(recipe: Recipe) -> Iterator[None]:
    """A value that the models show to be wrong is named with its line, as those are that are read.

    Raises:
        RecipeError: instead of a `UsageError` about something in the recipe.
    """
    try:
        yield
    except UsageError as error:
        place = recipe.places.get(error.about or "")
        if place is None:
            raise
        raise RecipeError(f"{place}: {error}") from error


def _of_recipe(
    recipe: Recipe, parents: Mapping[str, str]
) -> tuple[list[ModelReference], MergeOptions, tuple[tuple[str, ...], ...] | None]:
    """The models, the options, and per model the parts that are kept out, where that is decided."""
    for label in parents:
        known = [model.local for model in recipe.models if model.local is not None]
        if label not in known:
            have = ", ".join(map(repr, known)) or "none"
            raise RecipeError(
                f"the recipe names no local model {label!r}, it has: {have}. Mend the label of "
                "--parent, or leave it out."
            )
    models = [_parent(model, parents) for model in recipe.models]
    kept = tuple(model.kept_parts for model in recipe.models)
    return models, recipe.options, kept if recipe.scope_decided else None


def _parent(model: RecipeModel, parents: Mapping[str, str]) -> ModelReference:
    """Where a parent of a recipe is: where the user says, else where the recipe says."""
    label = model.local
    if label is not None and label in parents:
        reference = ModelReference.parse(parents[label])
        asked = {"weights": model.weights, "stage": model.stage}
        asked |= dict(parse_qsl((model.reference or "").partition("?")[2]))
        if reference.weights == "student":
            reference = replace(reference, weights=asked["weights"] or "student")
        if reference.stage is None and Path(reference.location).is_dir():
            reference = replace(reference, stage=asked["stage"])
    elif model.reference is not None:
        try:
            reference = ModelReference.parse(model.reference)
        except ModelReferenceError as error:
            if label is None:
                raise
            raise RecipeError(
                f"the local model {label!r} is not where the recipe says. Say where it is: "
                f"--parent {label}=PATH."
            ) from error
    else:
        raise RecipeError(
            f"the recipe names the local model {label!r} without a path. Say where it is: "
            f"--parent {label}=PATH."
        )
    if not reference.on_hub:
        _check_parent(label or reference.label, Path(reference.location), model.sha256)
    return reference


def _check_parent(label: str, path: Path, sha256: Mapping[str, str]) -> None:
    """Refuse a local parent that is not what the recipe was written for.

    Raises:
        VerificationError: a file is missing or has another checksum.
    """
    for name, digest in sha256.items():
        file = path / name if path.is_dir() else path
        if not file.is_file() or sha256_of(file) != digest:
            raise VerificationError(
                f"{label!r} is not the model that the recipe names: another sha256 of {file.name}. "
                f"Give the original with --parent {label}=PATH."
            )
