"""`DataSet`: images with what is true of them, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.label_spaces import LabelSpace
from lwmm_hub.evaluation.values import Sample

_USUAL_SPLITS = ("validation", "val", "test")


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images with what is true of them, in a fixed order, read on demand.

    Attributes:
        reference: how the user named it; of a folder its name, never its path.
        revision: 40-hex commit on the Hub, or a fingerprint of the local files; None where there
            is neither. Interrupted runs go on only where it is the same.
        split: e.g. `validation`.
        space: what its labels are, and which of them are things where it has panoptic truth.
        task: what it is made for, one of `values.TASKS`; panoptic data may have label maps, too.
        count: number of images; None where that is not known before the end (streaming).
        samples: (start, step) -> samples number start, start + step, ...
        with_unknown: whether the label behind the last of `space` stands for classes that no model
            was trained on (open-partial classification).
        columns: what of it is read as what, where there may be more than one way: names of columns
            and the task; of a folder its layout and what its label files hold.
        files: the images, where they are files on this machine.
    """

    reference: str
    revision: str | None
    split: str | None
    space: LabelSpace
    task: str
    count: int | None
    samples: Callable[[int, int], Iterator[Sample]]
    with_unknown: bool = False
    columns: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def choose_split(splits: Sequence[str], wanted: str | None, name: str) -> str:
    """The split that is asked for, or the one that evaluation is for.

    >>> choose_split(["train", "val"], None, "streets")
    'val'

    Raises:
        EvaluationError: there is no such split, or none that is meant by itself.
    """
    known = ", ".join(sorted(splits))
    if wanted is not None:
        if wanted in splits:
            return wanted
        raise EvaluationError(f"{name} has no split {wanted!r}. It has: {known}.")
    for usual in _USUAL_SPLITS:
        if usual in splits:
            return usual
    if len(splits) == 1:
        return splits[0]
    raise EvaluationError(f"{name} has the splits {known}. Choose one with --split.")
