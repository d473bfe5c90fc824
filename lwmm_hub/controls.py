"""A merge with layer weights in numbers -> the merges that show what these weights are worth.

Fitted weights may be good because of their mean, of their order over depth, or of neither. So the
same parents are merged anew, by the ordinary merge, with weights that have the one and not the
other; beside them stand the ramp, the isotropic merge and the parents' ensemble.

    data = open_data("org/streets", split="validation")
    evaluate_models(["fitted"], data, columns=controls_of(["fitted"])).report
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lwmm_hub.errors import OutputError, UsageError, VerificationError
from lwmm_hub.evaluation.comparing import Column
from lwmm_hub.pipeline import run_merge
from lwmm_hub.planning import MergeOptions, MergePlan
from lwmm_hub.preparing import models_of
from lwmm_hub.recipe import Recipe
from lwmm_hub.reference import ModelReference
from lwmm_hub.rerunning import plan_recipe
from lwmm_hub.schedule import SCHEDULES, TABLE, Schedule
from lwmm_hub.verifying import find_merge
from lwmm_hub.weight_table import WeightTable

CONTROLS = ("isotropic", "ramp", "ensemble", "constant", "shuffled")
ISOTROPIC, RAMP, ENSEMBLE, CONSTANT, SHUFFLED = CONTROLS
SEED = 0


def controls_of(
    models: Sequence[str | os.PathLike[str] | ModelReference],
    *,
    parents: Mapping[str, str] | None = None,
    seed: int = SEED,
) -> tuple[Column, ...]:
    """The controls of the one merge among `models` whose layer weights are numbers.

    They go to `evaluation.comparing.evaluate_models` as `columns`.

    Args:
        models: folders or repositories; those of the Hub are asked where no folder is such a merge.
        parents: label -> path of local parents that moved.
        seed: of the order of the layers in `shuffled`.

    Raises:
        UsageError: none of them is such a merge, or several are.
        RecipeError: a local parent is not where the recipe says.
        VerificationError: recipe and manifest have other weights, or a parent has changed.
    """
    references = [
        model if isinstance(model, ModelReference) else ModelReference.parse(os.fspath(model))
        for model in models
    ]
    scheduled: list[str] = []
    found: list[tuple[str, Mapping[str, Any], Recipe]] = []
    for on_hub in (False, True):
        for reference in references if not found else ():
            merged = find_merge(reference) if reference.on_hub == on_hub else None
            if merged is not None and merged[1].table is not None:
                found.append((reference.label, *merged))
            elif merged is not None:
                rule = merged[1].options.schedule
                scheduled.append(f" {reference.label} was merged by the {rule} schedule.")
    if not found:
        raise UsageError(
            "controls are those of a merge whose layer weights are numbers: fitted, measured, or "
            f"from a file.{''.join(scheduled)} Name the folder or repository of such a merge among "
            "the models, or leave --controls out."
        )
    if len(found) > 1:
        names = " and ".join(name for name, *_ in found)
        raise UsageError(f"{names} have layer weights in numbers: ask for --controls of one alone.")
    [(label, manifest, recipe)] = found
    plan = plan_recipe(recipe, parents=parents)
    _check_weights(plan, manifest, label)
    return controls(plan, label, seed)


def _check_weights(plan: MergePlan, manifest: Mapping[str, Any], label: str) -> None:
    """The recipe's weights are those that the merge was made with.

    Raises:
        VerificationError: they are not.
    """
    try:
        said = [(row["name"], tuple(row["weights"])) for row in manifest["plan"]["layers"]]
    except (LookupError, TypeError) as error:
        raise OutputError(f"the manifest of {label} is incomplete. Merge again.") from error
    if said != [(layer.name, layer.weights) for layer in plan.layers]:
        raise VerificationError(
            f"the recipe of {label} has other layer weights than its manifest: one was changed "
            "since the merge. See what 'lwmm-hub verify' says of it, or merge again."
        )


def controls(plan: MergePlan, label: str, seed: int = SEED) -> tuple[Column, ...]:
    """What a merge is compared with, in the order of `CONTROLS`.

    Args:
        plan: decided, with layer weights in numbers.
        label: what the merge is called in notes.
        seed: of the order of the layers in `shuffled`.

    Raises:
        UsageError: a schedule gives the layer weights.
    """
    import numpy as np

    if plan.table is None:
        raise UsageError(
            f"{label} was merged by the {plan.options.schedule} schedule: controls are those of "
            "layer weights in numbers. Leave --controls out."
        )
    rows = [layer.weights for layer in plan.layers]
    mean = tuple(math.fsum(weights) / len(rows) for weights in zip(*rows, strict=True))
    order = np.random.default_rng(seed).permutation(len(rows))
    shown = ", ".join(f"{m.label} {w:.3f}" for m, w in zip(plan.models, mean, strict=True))
    ramp, which = _ramp(plan.weights_from)
    return (
        isotropic(plan),
        _column(plan, RAMP, which, ramp),
        Column(ENSEMBLE, "", lambda: nullcontext(models_of(plan)), optional=True),
        _column(
            plan,
            CONSTANT,
            f"the mean of the layer weights of {label} in every layer ({shown})",
            TABLE,
            [mean] * len(rows),
        ),
        _column(
            plan,
            SHUFFLED,
            f"the layer weights of {label} in another order of the layers (seed {seed})",
            TABLE,
            [rows[i] for i in order],
        ),
    )


def isotropic(plan: MergePlan) -> Column:
    """The same parents, merged uniformly."""
    return _column(plan, ISOTROPIC, "the same parents merged uniformly", "isotropic")


def _ramp(origin: Mapping[str, Any]) -> tuple[str, str]:
    """The schedule that a fit began with, or the usual one; and what to say of it."""
    usual = MergeOptions().schedule
    kind = str(origin.get("ramp"))
    known = kind in SCHEDULES and kind != "isotropic"  # that is a control of its own
    began = known and origin.get("method") == "fit" and origin.get("start") == "ramp"
    kind = kind if known else usual
    return kind, f"the {kind} schedule{', where the fit began' if began else ''}"


def _column(
    plan: MergePlan,
    name: str,
    about: str,
    schedule: str,
    rows: Sequence[tuple[float, ...]] | None = None,
) -> Column:
    """A merge of the plan's parents by another rule, or with other numbers."""
    table = None
    if rows is not None:
        layers = (layer.name for layer in plan.layers)
        table = WeightTable(dict(zip(layers, rows, strict=True)), {"method": "table"})
    return Column(name, about, partial(_merged, plan, name, schedule, table))


@contextmanager
def _merged(
    plan: MergePlan, name: str, schedule: str, table: WeightTable | None
) -> Iterator[list[str]]:
    """The folder of a merge that is gone afterwards, whatever happens."""
    plain = MergeOptions()
    options = replace(
        plan.options.with_curve(Schedule(schedule)),
        max_shard_size=plain.max_shard_size,
        output_format=plain.output_format,
    )
    with tempfile.TemporaryDirectory(prefix="lwmm-control-") as scratch:
        folder = Path(scratch) / name
        run_merge(
            models_of(plan),
            options,
            kept_parts=tuple(model.kept_parts for model in plan.models),
            output=folder,
            started=time.monotonic(),
            pairs_sha256=plan.pairs_sha256,
            table=table,
        )
        yield [str(folder)]
