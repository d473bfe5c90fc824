"""Run a recipe again: its parents found and checked, its decisions kept."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

from lwmm_hub.checkpoint import SIDE_FILES
from lwmm_hub.errors import (
    LwmmError,
    ModelReferenceError,
    OutputError,
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
from lwmm_hub.recipe import Recipe, RecipeModel, is_path, read_recipe
from lwmm_hub.reference import ModelReference, StandIn
from lwmm_hub.writing import MANIFEST, RECIPE, sha256_of


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
        recipe: its file, the folder of a merge, `org/name` of one on the Hub, or its content.
        output: the folder.
        overwrite: replace an earlier merge of that name.
        threads: workers; the result does not depend on it.
        progress: called with the bytes made since the last call.
        parents: label -> path of parents that the recipe names by label only; or `org/name` ->
            path of a copy of one that the Hub does not have any more.
        tags: more tags for the card.
        approve: called with the plan before anything is downloaded whole or written.

    Raises:
        RecipeError: the recipe is wrong, with the line; or a local parent is not given.
        VerificationError: a parent is not the one that the recipe names.
    """
    started = time.monotonic()
    before: dict[str, str] | None = {}
    if not isinstance(recipe, Recipe):
        recipe, place = open_recipe(recipe)
        before = _files_beside(place)
    models, options, kept = _of_recipe(recipe, parents or {})
    folder = output_folder(output)

    def check(plan: MergePlan) -> None:
        _require_recorded(recipe, plan)
        if approve is not None:
            approve(plan)

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
            approve=check,
            pairs_sha256=recipe.pairs_sha256,
            table=recipe.table,
        )
    if before in ({}, result.files):
        return result
    changed = "the weights are not those beside the recipe: a local model has changed since then."
    if before is None:
        changed = "the manifest beside the recipe was changed: no weights were compared with it."
    return replace(result, plan=replace(result.plan, warnings=(*result.warnings, changed)))


def open_recipe(where: str | os.PathLike[str]) -> tuple[Recipe, Path]:
    """A recipe, and the folder that it lies in.

    Args:
        where: its file; the folder of a merge; or `org/name` of a merge on the Hub, where there is
            no such path.

    Raises:
        RecipeError: there is none, or it is wrong.
        OutputError: it is from the Hub and names paths.
        ResolveError: there is no such repository.
    """
    path = Path(where)
    try:
        reference = ModelReference.parse(where) if isinstance(where, str) else None
    except ModelReferenceError:  # then it is no repository; as a file it is told below
        reference = None
    if reference is not None and not reference.on_hub:
        path = Path(reference.location)
    elif reference is not None and path.suffix not in (".yaml", ".yml"):
        fetched = fetch_merge(reference)
        if fetched is None:
            raise RecipeError(
                f"{reference} has no {MANIFEST} and {RECIPE}: it was not pushed by lwmm-hub. Name "
                "a recipe's file, or the folder or repository of a merge."
            )
        return recipe_in(fetched[0], reference), fetched[0]
    if path.is_dir():
        return read_recipe(path / RECIPE), path
    return read_recipe(path), path.parent


def fetch_merge(reference: ModelReference) -> tuple[Path, dict[str, str]] | None:
    """What lies beside a repository's weights, and the checksums that the Hub has of these.

    None where lwmm-hub wrote neither manifest nor recipe.

    Raises:
        ResolveError: there is no such repository.
    """
    from lwmm_hub.resolving.hub import fetch_files  # huggingface_hub, only where it is needed

    return fetch_files(reference, (MANIFEST, RECIPE), SIDE_FILES)


def recipe_in(folder: Path, reference: ModelReference) -> Recipe:
    """The recipe that lies in a folder, or was fetched there.

    Raises:
        RecipeError: there is none, or it is wrong.
        OutputError: it is from the Hub and names paths.
    """
    recipe = read_recipe(folder / RECIPE)
    if reference.on_hub and any(is_path(m.reference or "") for m in recipe.models):
        raise OutputError(
            f"the recipe of {reference} names paths of somebody's disk: it was not pushed by "
            "lwmm-hub."
        )
    return recipe


def _require_recorded(recipe: Recipe, plan: MergePlan) -> None:
    """Refuse models of the Hub that are not what the recipe was written for.

    A commit does not change, but a cache may hold other files of it.

    Raises:
        VerificationError: other files are read, or one has another checksum.
    """
    for model, planned in zip(recipe.models, plan.models, strict=True):
        known = set(planned.sha256.values())
        if planned.local or None in known or known.issuperset(model.sha256.values()):
            continue
        name = planned.label.partition("@")[0]
        raise VerificationError(
            f"{name} is not the model that the recipe names: other files of it are here, or other "
            f"sha256. Give a copy of its commit with --parent {name}=PATH."
        )


def _files_beside(folder: Path) -> dict[str, str] | None:
    """sha256 of the weight files that the manifest beside a recipe names.

    Empty where there is no manifest, None where it is not what lwmm-hub writes.
    """
    if not (folder / MANIFEST).exists():
        return {}
    try:
        files = read_manifest(folder)["output"]["files"]
    except LwmmError:
        return None
    return {name: str(file["sha256"]) for name, file in files.items()}


def plan_recipe(
    recipe: str | os.PathLike[str] | Recipe, *, parents: Mapping[str, str] | None = None
) -> MergePlan:
    """What `merge_recipe` would do; nothing is downloaded whole or written."""
    if not isinstance(recipe, Recipe):
        recipe, _ = open_recipe(recipe)
    models, options, kept = _of_recipe(recipe, parents or {})
    opened = open_models(
        models, options, download=False, kept_parts=kept, pairs_sha256=recipe.pairs_sha256
    )
    with _errors_in_place(recipe):
        made = decide(replace(opened, table=recipe.table))
    _require_recorded(recipe, made)
    return made


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
    given = _given(recipe, parents)
    models = [_parent(model, given.get(i)) for i, model in enumerate(recipe.models)]
    kept = tuple(model.kept_parts for model in recipe.models)
    return models, recipe.options, kept if recipe.scope_decided else None


def _given(recipe: Recipe, parents: Mapping[str, str]) -> dict[int, str]:
    """Which models have a path of the user's: number -> path.

    Raises:
        RecipeError: a label is that of no model, or of several.
    """
    names = [_names(model) for model in recipe.models]
    found: dict[int, str] = {}
    for label, path in parents.items():
        numbers = [i for i, own in enumerate(names) if label in own]
        if not numbers:
            have = ", ".join(repr(own[0]) for own in names if own) or "none"
            kind = "model" if "/" in label else "local model"
            raise RecipeError(
                f"the recipe names no {kind} {label!r}, it has: {have}. Mend the label of "
                "--parent, or leave it out."
            )
        commits = dict.fromkeys(names[i][-1] for i in numbers)
        if len(commits) > 1:
            raise RecipeError(
                f"--parent {label}: the recipe names several models so. Choose one: "
                f"{', '.join(commits)}."
            )
        found |= dict.fromkeys(numbers, path)
    return found


def _names(model: RecipeModel) -> list[str]:
    """What `--parent` calls a model: its label, or its repository, with the commit or without."""
    if model.local is not None:
        return [model.local]
    if is_path(model.reference or ""):
        return []
    reference = ModelReference.parse(model.reference or "")
    return [reference.location, f"{reference.location}@{reference.revision}"]


def _parent(model: RecipeModel, given: str | None) -> ModelReference:
    """Where a parent of a recipe is: where the user says, else where the recipe says."""
    label = model.local
    if given is not None and label is None:
        return _stand_in(model, given)
    if given is not None:
        reference = ModelReference.parse(given)
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


def _stand_in(model: RecipeModel, given: str) -> ModelReference:
    """A model of the Hub of which a copy is read that lies on disk.

    Raises:
        RecipeError: the recipe does not say what the copy has to be, or there is none.
        VerificationError: it is another model.
    """
    reference = ModelReference.parse(model.reference or "")
    name, path = reference.location, Path(given).expanduser()
    if not reference.pinned or not model.sha256:
        raise RecipeError(
            f"the recipe has no commit and sha256 of {name}, so nothing shows that a copy is it. "
            "Leave --parent out, or merge anew with the copy as a model."
        )
    if not path.exists():
        raise RecipeError(f"--parent {name}: there is no file or folder {given!r}. Mend the path.")
    sha256 = model.sha256
    if not path.is_dir():
        if len(sha256) > 1:
            raise RecipeError(
                f"--parent {name}: the recipe names {len(sha256)} files of it. Name their folder."
            )
        sha256 = {path.name: next(iter(sha256.values()))}
    _check_parent(name, path, sha256)
    return replace(reference, stand_in=StandIn(str(path), sha256))


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
