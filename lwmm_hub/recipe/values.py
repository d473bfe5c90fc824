"""A recipe as a value: pinned parents, the options, and the decisions that the weights made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath

from lwmm_hub.planning import MergeOptions, MergePlan
from lwmm_hub.reference import ModelReference
from lwmm_hub.weight_table import WeightTable

VERSION = 1  # of the file


@dataclass(frozen=True)
class RecipeModel:
    """One parent of a recipe: a pinned reference, a local path with its label, or the label alone.

    Where there is no reference to say it, `weights` says which copy of the file is meant, and
    `stage` which network of a folder.
    """

    reference: str | None = None
    local: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    kept_parts: tuple[str, ...] = ()
    weights: str = "student"
    stage: str | None = None


@dataclass(frozen=True)
class Recipe:
    """The parents in order (the anchor first) and the options of a merge.

    `scope_decided` says that `kept_parts` are the verdict on the weights; otherwise they are judged
    when the recipe runs. `pairs_sha256` is the checksum of what was matched by values: they are
    matched anew when the recipe runs, and have to match the same. `table` holds layer weights that
    no schedule gives. `places` says where the values stand that models may show to be wrong.
    """

    models: tuple[RecipeModel, ...]
    options: MergeOptions
    scope_decided: bool = False
    pairs_sha256: str | None = None
    table: WeightTable | None = None
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


def recipe_of(plan: MergePlan, public: bool, folder: Path | None = None) -> Recipe:
    """The recipe that runs `plan` again.

    Args:
        plan: a decided plan.
        public: name local parents by label and checksum only, never by path.
        folder: where the recipe will lie; local paths are written relative to it.
    """
    models = []
    for model in plan.models:
        sha256 = {name: value for name, value in model.sha256.items() if value}
        if not model.local:
            reference = ModelReference.parse(f"hf://{model.reference}")
            pinned = str(replace(reference, revision=model.commit))
            models.append(RecipeModel(pinned, None, sha256, model.kept_parts))
        elif public:
            chosen = (model.weights, model.stage)
            models.append(RecipeModel(None, model.label, sha256, model.kept_parts, *chosen))
        else:
            text = _relative(model.reference, folder)
            models.append(RecipeModel(text, model.label, sha256, model.kept_parts))
    return Recipe(tuple(models), plan.options, plan.scope_decided, plan.pairs_sha256, plan.table)


def _relative(reference: str, folder: Path | None) -> str:
    """A local reference as seen from `folder`, where that is possible."""
    path, _, query = reference.partition("?")
    absolute = Path(path).expanduser().absolute()
    try:
        text = os.path.relpath(absolute, folder or Path.cwd())
    except ValueError:  # another drive
        text = str(absolute)
    text = Path(text).as_posix()
    text = text if is_path(text) else f"./{text}"
    return f"{text}?{query}" if query else text


def is_path(reference: str) -> bool:
    """Whether a reference of a recipe is a local path; else it is the Hub's.

    >>> is_path("./anchor"), is_path("D:/models/anchor"), is_path("org/name")
    (True, True, False)
    """
    return reference.startswith((".", "/")) or PureWindowsPath(reference).is_absolute()


def moved_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe as it reads from another folder: its local paths relative to `folder`."""
    models = (
        replace(model, reference=_relative(model.reference, folder))
        if model.reference is not None and is_path(model.reference)
        else model
        for model in recipe.models
    )
    return replace(recipe, models=tuple(models))
