"""Whether the local parents of a merge are still the files that were merged; then their sha256.

Nothing of a local parent but its label and the sha256 of its files is published, and these let
others prove that they have the same model. So a checksum that may be another model's is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lwmm_hub.checkpoint import files_at, marks_of
from lwmm_hub.errors import PublishError, RecipeError, UsageError
from lwmm_hub.recipe import Recipe, parse_recipe, read_recipe
from lwmm_hub.writing import RECIPE, sha256_of


def public_recipe(
    folder: Path, manifest: Mapping[str, Any], parents: Mapping[str, str]
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with local parents by label and checksum, and what there is to say of it.

    Args:
        folder: the merge.
        manifest: its own.
        parents: label -> path of local parents that moved.

    Raises:
        UsageError: `parents` names no local parent.
        PublishError: what it names is not what was merged.
    """
    public = parse_recipe(manifest["recipe"], RECIPE)
    planned = manifest["plan"]["models"]
    labels = [model.local for model in public.models if model.local is not None]
    for label in parents:
        if label not in labels:
            have = ", ".join(map(repr, labels)) or "none"
            raise UsageError(
                f"the merge has no local parent {label!r}, it has: {have}. Mend the label of "
                "--parent, or leave it out."
            )
    models, warnings = [], []
    for number, (model, row) in enumerate(zip(public.models, planned, strict=True)):
        if model.local is None:
            models.append(model)
            continue
        given = parents.get(model.local)
        place = Path(given).expanduser() if given else _place(folder, number, len(planned))
        found, why = _checksums(row, place)
        if why and given:
            raise PublishError(
                f"{model.local!r} at --parent {why}. Name the original, or merge again and push "
                "that."
            )
        if why:
            warnings.append(
                f"the sha256 of {model.local!r} is not published: it {why}. Say where the original "
                f"is with --parent {model.local}=PATH, or merge again and push that."
            )
        models.append(replace(model, sha256=found))
    return replace(public, models=tuple(models)), tuple(warnings)


def _place(folder: Path, number: int, models: int) -> Path | None:
    """Where a parent lies by the recipe in a folder; None where that does not say."""
    try:
        local = read_recipe(folder / RECIPE).models
    except RecipeError:
        return None
    text = local[number].reference if len(local) == models else None
    return None if text is None else Path(text.partition("?")[0])


def _checksums(planned: Mapping[str, Any], place: Path | None) -> tuple[dict[str, str], str]:
    """sha256 of a local parent's files; where they are not those that were merged, why not."""
    marks, names = planned.get("marks"), [str(name) for name in planned["files"]]
    if not marks:
        return {}, "cannot be told from another model, as an older version merged it"
    if place is None or not place.exists():
        return {}, "is not where the recipe says" if place is None else "is not there"
    if marks_of(place, names) != marks:
        return {}, "is another file than was merged, or was written anew since"
    return {name: sha256_of(file) for name, file in files_at(place, names).items()}, ""
