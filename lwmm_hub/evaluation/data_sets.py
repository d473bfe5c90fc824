"""`DataSet`: images with what is true of them, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lwmm_hub.evaluation.label_spaces import LabelSpace
from lwmm_hub.evaluation.values import Sample


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images with what is true of them, in a fixed order, read on demand.

    Attributes:
        reference: how the user named it.
        revision: 40-hex commit on the Hub, or a fingerprint of the local files; None where there
            is neither. Interrupted runs go on only where it is the same.
        split: e.g. `validation`.
        space: what its labels are.
        task: what it is made for, one of `values.TASKS`; panoptic data may have label maps, too.
        count: number of images; None where that is not known before the end (streaming).
        samples: (start, step) -> samples number start, start + step, ...
    """

    reference: str
    revision: str | None
    split: str | None
    space: LabelSpace
    task: str
    count: int | None
    samples: Callable[[int, int], Iterator[Sample]]
