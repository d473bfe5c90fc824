"""What `merge --evaluate` and `card --scores` do with scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lwmm_hub.cli.evaluating import MAX_SCORES, progress_bar
from lwmm_hub.cli.output import Output
from lwmm_hub.errors import UsageError
from lwmm_hub.small_files import read_small

if TYPE_CHECKING:
    from lwmm_hub.evaluation.data_sets import DataSet
    from lwmm_hub.evaluation.reporting import Report
    from lwmm_hub.merge_result import MergeResult

JUDGE_OPTIONS = (
    click.option("--evaluate", "judge_on", metavar="DATA",
                 help="Score the merge beside its parents, and put that into its card."),
    click.option("--evaluate-split", "judge_split", metavar="NAME", help="Of that data set."),
    click.option("--evaluate-labels", "judge_labels", metavar="SPACE",
                 help="What its labels are, where it does not say."),
    click.option("--evaluate-limit", "judge_limit", type=int, metavar="N",
                 help="Only its first N images."),
    click.option("--controls", is_flag=True,
                 help="With --evaluate and layer weights in numbers: score what they are worth, as "
                      "in 'lwmm-hub evaluate --controls'."),
)  # fmt: skip


def data_to_judge_on(
    data: str | None, split: str | None, labels: str | None, limit: int | None, controls: bool
) -> DataSet | None:
    """The data set that a merge is to be scored on, opened before the work begins.

    Raises:
        UsageError: options of an evaluation that is not asked for.
        EvaluationError: there is no such data set.
    """
    if data is None:
        if controls or any(value is not None for value in (split, labels, limit)):
            raise UsageError(
                "--evaluate-split, --evaluate-labels, --evaluate-limit and --controls go with "
                "--evaluate: name a data set with it."
            )
        return None
    from lwmm_hub.evaluation.opening import open_data

    return open_data(data, split=split, label_space=labels)


def check_controlled(recipe: str | None) -> None:
    """Refuse controls, before the work begins, where a schedule gives the layer weights.

    Raises:
        UsageError: it does, in this recipe or where there is none.
        RecipeError: the recipe is wrong.
    """
    from lwmm_hub.recipe import read_recipe

    if recipe is None or read_recipe(Path(recipe)).table is None:
        raise UsageError(
            "--controls show what layer weights in numbers are worth, and a schedule gives them "
            "here: leave it out, or choose --weights."
        )


def judge(
    result: MergeResult, output: Output, data: DataSet, limit: int | None, controls: bool
) -> Report:
    """Score a merge beside its parents and the isotropic merge; the card then says so."""
    from lwmm_hub.evaluation.running import RunOptions
    from lwmm_hub.judging import judge_merge

    with progress_bar(output) as progress:
        return judge_merge(
            result, data, run=RunOptions(limit=limit), controlled=controls, progress=progress
        )


def put_scores(folder: str, file: str) -> None:
    """Put the scores that `evaluate --save-to` wrote into a merge's manifest and card."""
    from lwmm_hub.judging import record_scores

    try:
        document = json.loads(read_small(Path(file), MAX_SCORES))
    except (OSError, ValueError, RecursionError) as error:
        what = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise UsageError(
            f"{file} cannot be read as JSON ({what}). Name a file of 'lwmm-hub evaluate --save-to'."
        ) from error
    record_scores(Path(folder), document if isinstance(document, dict) else {})
