"""References and options -> opened, matched models -> a decided plan."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lwmm_hub.checkpoint import Checkpoint, marks_of
from lwmm_hub.errors import MergeError, RecipeError, UsageError, VerificationError
from lwmm_hub.inferring import match_by
from lwmm_hub.key_map import KeyMap, leave_out
from lwmm_hub.keywords import check_known
from lwmm_hub.lineage import lineage_of
from lwmm_hub.matching import same_model_warnings, with_distinct_labels
from lwmm_hub.planning import MergeOptions, MergePlan, PlannedModel, plan_merge
from lwmm_hub.reference import ModelReference, StandIn
from lwmm_hub.relatedness import measure_relatedness, require_related
from lwmm_hub.resolving import resolve
from lwmm_hub.schedule import TABLE
from lwmm_hub.untrained import find_untrained, untrained_warnings
from lwmm_hub.weight_table import FOUND, WeightTable, read_weights

Reference = str | os.PathLike[str] | ModelReference
Weights = WeightTable | Mapping[str, Sequence[float]] | str | os.PathLike[str]

_NOT_LOOKED_FOR = (
    "NaN and infinite values were not looked for (--allow-nonfinite): those of a parent, or of a "
    "sum that is too large, are in the result."
)


@dataclass(frozen=True)
class Opened:
    """Models that were resolved and matched, before their weights are read."""

    checkpoints: tuple[Checkpoint, ...]
    key_map: KeyMap
    options: MergeOptions
    kept_parts: tuple[tuple[str, ...], ...] | None = None
    notes: tuple[str, ...] = ()
    pairs_sha256: str | None = None
    table: WeightTable | None = None


def references_of(anchor: Reference, donors: Sequence[Reference]) -> list[ModelReference]:
    """The models as references, the anchor first.

    Raises:
        UsageError: there is no donor, or a list of models.
        ModelReferenceError: a text is no reference.
    """
    if any(isinstance(model, list | tuple) for model in (anchor, *donors)):
        raise UsageError("models are named one by one, not in a list: anchor, donor, ...")
    if not donors:
        raise UsageError("a merge needs an anchor and at least one donor: name two models.")
    if any(isinstance(model, MergePlan) for model in (anchor, *donors)):
        raise UsageError("a plan holds all its models: pass it alone.")
    return [
        model if isinstance(model, ModelReference) else ModelReference.parse(model)
        for model in (anchor, *donors)
    ]


def models_of(plan: MergePlan) -> list[ModelReference]:
    """The plan's models: pinned to the commits, and the files, that it was made from.

    Raises:
        ModelReferenceError: a local model is not there.
        RecipeError: it is not the one that the plan was made from.
    """
    return [_model_of(model) for model in plan.models]


def _model_of(model: PlannedModel) -> ModelReference:
    if not model.local:
        reference = ModelReference.parse(f"hf://{model.reference}")
        copy = None
        if model.path is not None:
            copy = StandIn(model.path, {n: v for n, v in model.sha256.items() if v})
        revision = model.commit or reference.revision
        return replace(reference, revision=revision, stand_in=copy)
    text = model.reference
    written, _, query = text.partition("?")
    if model.path is not None and model.path != str(Path(written).absolute()):
        text = f"{model.path}?{query}" if query else model.path  # we are in another folder by now
    reference = ModelReference.parse(text)
    if model.marks and marks_of(Path(reference.location), model.files) != model.marks:
        raise RecipeError(
            f"{model.label!r} is not what the plan was made from: its file was changed or written "
            "anew, or the plan was made in another folder and another model has its name here. "
            "Make the plan again with lw.plan(...)."
        )
    return reference


def require_unchanged(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse a result of local models that were written to while they were read.

    Raises:
        MergeError: a file is not the one that was opened.
    """
    for checkpoint in checkpoints:
        path = Path(checkpoint.reference.location)
        if checkpoint.marks and marks_of(path, checkpoint.files) != checkpoint.marks:
            raise MergeError(
                f"{checkpoint.label} changed while it was merged, so nothing was written. Merge "
                "again when nothing writes to it any more."
            )


def options_of(options: Mapping[str, Any], table: WeightTable | None) -> MergeOptions:
    """Keyword arguments as options, beside layer weights in numbers where there are any.

    Raises:
        UsageError: one is unknown, or a curve is asked for as well.
    """
    if table is not None:
        if options.get("schedule", TABLE) != TABLE:
            raise UsageError("weights take the place of a schedule: leave one of them out.")
        options = {**options, "schedule": TABLE}
    if isinstance(options.get("max_shard_size"), int):
        options = {**options, "max_shard_size": str(options["max_shard_size"])}
    check_known(options, (f.name for f in fields(MergeOptions)))
    return MergeOptions(**options)


def open_models(
    models: Sequence[ModelReference],
    options: MergeOptions,
    download: bool,
    kept_parts: tuple[tuple[str, ...], ...] | None = None,
    pairs_sha256: str | None = None,
    look: bool = False,
) -> Opened:
    """Resolve and match models; `look` says what `match="values"` would add."""
    options.check(len(models))
    download = download or options.match == "values"
    checkpoints = with_distinct_labels([resolve(m, download=download) for m in models])
    key_map, notes = match_by(options.match, checkpoints, look)
    return Opened(checkpoints, key_map, options, kept_parts, notes, pairs_sha256)


def warnings_of(opened: Opened) -> tuple[str, ...]:
    """What the user should know before any weight is read."""
    own = [warning for c in opened.checkpoints for warning in c.warnings]
    unseen = (_NOT_LOOKED_FOR,) if opened.options.allow_nonfinite else ()
    return (*own, *same_model_warnings(opened.checkpoints), *opened.notes, *unseen)


def decide(opened: Opened) -> MergePlan:
    """Read the sample of weights, judge, and plan with the verdict."""
    untrained = find_untrained(opened.key_map, opened.checkpoints)
    key_map = opened.key_map
    if opened.options.scope == "auto":
        kept = opened.kept_parts
        key_map = leave_out(
            key_map,
            {
                (i, layer): why
                for (i, layer), why in {**untrained, **key_map.other_classes}.items()
                if kept is None or layer in kept[i]
            },
        )
    results = measure_relatedness(key_map, opened.checkpoints)
    labels = [c.label for c in opened.checkpoints]
    related = require_related(results, labels, opened.options.allow_unrelated)
    plan = plan_merge(
        key_map,
        opened.checkpoints,
        opened.options,
        results,
        (*warnings_of(opened), *related, *untrained_warnings(untrained, opened.options.scope)),
        opened.kept_parts,
        lineage_of(key_map, opened.checkpoints, results),
        opened.table,
    )
    if opened.pairs_sha256 not in (None, plan.pairs_sha256):
        raise VerificationError(
            "the values of these models match other tensors than when the recipe was written: one "
            "of them has changed. Give the originals, or merge anew with --match values."
        )
    return plan


def table_of(weights: Weights | None) -> WeightTable | None:
    """The layer weights in numbers that are asked for.

    Raises:
        UsageError: they are no table, or none can be read.
    """
    if weights is None:
        return None
    if isinstance(weights, str) and weights in FOUND and not Path(weights).exists():
        raise UsageError(
            f"{weights!r} is no table of weights: lw.{FOUND[weights]} finds one for a plan."
        )
    if isinstance(weights, WeightTable):
        return weights
    if isinstance(weights, Mapping):
        rows = {str(layer): _numbers(str(layer), row) for layer, row in weights.items()}
        return WeightTable(rows, {"method": "table"})
    if not isinstance(weights, str | os.PathLike):
        raise UsageError(
            f"weights is of type {type(weights).__name__}: give a mapping of layers to numbers, a "
            "path, or a WeightTable."
        )
    return read_weights(Path(weights))


def _numbers(layer: str, row: Any) -> tuple[float, ...]:
    """A row of a mapping; text is none, although its digits could be read."""
    try:
        if isinstance(row, str | bytes) or any(isinstance(w, str | bytes) for w in row):
            raise TypeError
        return tuple(map(float, row))
    except (TypeError, ValueError):
        raise UsageError(
            f"weights has {reprlib.repr(row)} for {layer[:80]!r}: give a list of numbers, the "
            "anchor's weight first."
        ) from None
