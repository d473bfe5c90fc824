"""What `merge --evaluate` and `card --scores` do with scores."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from lwmm_hub.cli.evaluating import MAX_SCORES, progress_bar, read_label_map
from lwmm_hub.cli.options import given, written
from lwmm_hub.cli.output import Output
from lwmm_hub.errors import LwmmError, UsageError
from lwmm_hub.small_files import read_small

if TYPE_CHECKING:
    from lwmm_hub.evaluation.data_sets import DataSet
    from lwmm_hub.evaluation.label_maps import LabelOptions
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
    click.option("--map-labels", "judge_by_name", is_flag=True,
                 help="With --evaluate: compare labels by name where they differ."),
    click.option("--label-map", "judge_label_map", metavar="FILE",
                 type=click.Path(exists=True, dir_okay=False),
                 help="With --evaluate: lines of 'label of the model = label of the data'."),
    click.option("--controls", is_flag=True,
                 help="With --evaluate and layer weights in numbers: score what they are worth, as "
                      "in 'lwmm-hub evaluate --controls'."),
)  # fmt: skip


JUDGE_NAMES = (
    "judge_on", "judge_split", "judge_labels", "judge_limit", "judge_by_name", "judge_label_map",
    "controls",
)  # fmt: skip


class Judging(NamedTuple):
    """What a merge is to be scored on, and how.

    Attributes:
        data: the data set.
        labels: what to do where the anchor's labels differ.
        limit: at most so many images.
        controls: whether all controls are scored, too.
    """

    data: DataSet
    labels: LabelOptions
    limit: int | None
    controls: bool


def take_judging(options: dict[str, Any]) -> Judging | None:
    """Take the options of this module out of a command's, the data set opened before work begins.

    Raises:
        UsageError: options of an evaluation that is not asked for, or out of range.
        EvaluationError: there is no such data set, or it is empty.
    """
    data, *how = (options.pop(name) for name in JUDGE_NAMES)
    split, space, limit, by_name, label_map, controls = how
    if data is None:
        alone = [name for name in JUDGE_NAMES if given(name)]
        if alone:
            raise UsageError(
                f"{written(alone[0])} goes with --evaluate: name a data set with that, or leave "
                "it out."
            )
        return None
    from lwmm_hub.evaluation.label_maps import LabelOptions
    from lwmm_hub.evaluation.opening import open_data
    from lwmm_hub.evaluation.running import RunOptions

    labels = LabelOptions(by_name, read_label_map(label_map))
    with _options_of_merge():
        opened = open_data(data, split=split, label_space=space)
        RunOptions(limit=limit).check(opened)
    return Judging(opened, labels, limit, controls)


@contextmanager
def _options_of_merge() -> Iterator[None]:
    """Errors name options as `evaluate` calls them; some of them are called otherwise here."""
    try:
        yield
    except LwmmError as error:
        text = re.sub(r"(?<![\w-])--(split|labels|limit)\b", r"--evaluate-\1", error.text)
        raise type(error)(text) from error


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


def judge(result: MergeResult, output: Output, how: Judging, kept: str | None) -> Report:
    """Score a merge beside its parents and the isotropic merge; the card then says so.

    Args:
        result: the merge.
        output: for the bar.
        how: on what.
        kept: the folder in which the merge stays where this fails, None where it does not.
    """
    from lwmm_hub.evaluation.running import RunOptions
    from lwmm_hub.judging import judge_merge

    try:
        with progress_bar(output) as progress:
            return judge_merge(
                result,
                how.data,
                labels=how.labels,
                run=RunOptions(limit=how.limit),
                controlled=how.controls,
                progress=progress,
            )
    except LwmmError as error:
        if kept is None:
            raise
        raise type(error)(
            f"{error} The merge is complete in {kept}: score it with 'lwmm-hub evaluate', and put "
            f"that into its card with 'lwmm-hub card {kept} --scores FILE'."
        ) from error


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
