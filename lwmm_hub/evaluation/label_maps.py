"""`LabelMap`: how the labels of a model, or of a data set, are told in another label space."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.label_spaces import (
    LabelSpace,
    canonical,
    custom_space,
    describe,
    labels_of,
    space_of_labels,
    whole,
)
from lwmm_hub.evaluation.label_tables import MAPS
from lwmm_hub.evaluation.values import Labels

_MOST_LISTED = 40  # labels in a message about one that is not among them


@dataclass(frozen=True, eq=False)
class LabelMap:
    """How labels of one space are told in another one.

    Attributes:
        source: the labels that are taken.
        target: the labels that are given.
        table: label index of the source -> index in the target, or `target.ignored`: 256 entries
            of uint8, or 65536 of uint16 where one of the two has more classes than a byte holds.
            What the source ignores, the target does.
    """

    source: LabelSpace
    target: LabelSpace
    table: NDArray[np.uint8] | NDArray[np.uint16]

    def __call__(self, indices: Labels) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Label indices of the source as indices of the target; one look-up a pixel.

        Raises:
            EvaluationError: an index that the source does not have.
        """
        if indices.dtype.kind == "b":  # a mask of two classes
            indices = indices.astype(np.uint8)
        if indices.size:
            ignored = self.source.ignored
            known = indices[indices != ignored] if int(indices.max()) == ignored else indices
            low, high = (int(known.min()), int(known.max())) if known.size else (0, 0)
            if low < 0 or high >= len(self.source):
                raise EvaluationError(
                    f"labels {low} to {high} where {self.source.name} has 0 to "
                    f"{len(self.source) - 1}. Name the label space they are of."
                )
        return self.table[indices]

    @property
    def of_labels(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The part of `table` that is about labels of the source."""
        return self.table[: len(self.source)]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Labels of the source that the target has no counterpart of."""
        found = self.of_labels != self.target.ignored
        return tuple(label for label, ok in zip(self.source.labels, found, strict=True) if not ok)

    @property
    def never(self) -> tuple[str, ...]:
        """Labels of the target that nothing is mapped to."""
        reached = set(self.of_labels.tolist())
        return tuple(label for i, label in enumerate(self.target.labels) if i not in reached)


def map_labels(
    source: LabelSpace, target: LabelSpace, names: Mapping[str, str] | None = None
) -> LabelMap:
    """How labels of `source` are told in `target`.

    By name (`canonical`), except where a table of ours or `names` says otherwise. What has no
    counterpart is ignored; `LabelMap.left_out` and `LabelMap.never` say what that is.

    Args:
        source: the labels that there are.
        target: the labels that are wanted.
        names: label of the source -> label of the target, for what their names do not tell.

    Raises:
        EvaluationError: `names` has a label that the spaces do not have, or nothing is shared.
    """
    mine, theirs = compared(source.labels, target.labels)
    by_name = {name: index for index, name in enumerate(theirs)}
    wide = max(source.ignored, target.ignored)
    table = np.full(wide + 1, target.ignored, np.uint8 if wide < 256 else np.uint16)
    table[: len(source)] = [by_name.get(name, target.ignored) for name in mine]
    told = [*MAPS.get((source.name, target.name), {}).items(), *(names or {}).items()]
    for a, b in told:
        index, wanted = _place(a, source.labels, mine), _place(b, target.labels, theirs)
        if index is None or wanted is None:
            raise _foreign(a, b, source, target, left=index is None)
        table[index] = wanted
    if (table == target.ignored).all():
        raise EvaluationError(
            f"{describe(source.labels)} and {describe(target.labels)} share no label. Give a map "
            "from the one to the other."
        )
    return LabelMap(source, target, table)


def _foreign(a: str, b: str, source: LabelSpace, target: LabelSpace, left: bool) -> EvaluationError:
    """The error of a map's line `a = b`, of which one side (`left`: the first) is no label."""
    label, looked_up, other = (a, source, target) if left else (b, target, source)
    whose, side = ("model", "left") if left else ("data set", "right")
    text = (
        f"the label map says {a!r} = {b!r}, and {label!r}, on the {side} of it, is none of the "
        f"{whose}'s {describe(looked_up.labels, most=_MOST_LISTED)}."
    )
    if _place(a, target.labels, compared(target.labels)[0]) is not None and (
        _place(b, source.labels, compared(source.labels)[0]) is not None
    ):
        return EvaluationError(f"{text} Swap the sides: the model's label stands on the left.")
    if _place(label, other.labels, compared(other.labels)[0]) is not None:
        whose = "data set" if left else "model"
        return EvaluationError(
            f"{text} It is one of the {whose}'s: write label of the model = label of the data set."
        )
    return EvaluationError(f"{text} Correct that line.")


def compared(*lists: Sequence[str]) -> list[list[str]]:
    """What the labels of several lists are compared by: the first of their names.

    All of their names where a list has that first one twice: ImageNet's "Cardigan, Cardigan Welsh
    corgi" is a dog and its "cardigan" is none.

    >>> compared(["crane, bird", "crane, machine", "sky"], ["crane, machine", "heaven, sky"])
    [['crane bird', 'crane machine', 'sky'], ['crane machine', 'heaven']]
    """
    first = [[canonical(label) for label in labels] for labels in lists]
    twice = {name for names in first for name, count in Counter(names).items() if count > 1}
    return [
        [whole(label) if name in twice else name for label, name in zip(labels, names, strict=True)]
        for labels, names in zip(lists, first, strict=True)
    ]


def _place(label: str, labels: Sequence[str], names: Sequence[str]) -> int | None:
    """Which of some labels is meant: by its text, all of its names, or what it is compared by."""
    for wanted, there in (
        (label, labels),
        (whole(label), names),
        (canonical(label), names),
    ):
        if wanted in there:
            return there.index(wanted)
    return None


def match_labels(
    labels: Sequence[str] | Mapping[object, str],
    target: LabelSpace,
    *,
    names: Mapping[str, str] | None = None,
    allow_partial: bool = False,
) -> LabelMap:
    """What a model's classes are in the label space of a data set.

    The same classes in another order are put in order. Anything else is an error that shows the
    two lists, unless a map was asked for; a map that leaves classes out must be asked for as such.

    Args:
        labels: the model's, in label order, or its `id2label`.
        target: the label space that the truth is in.
        names: label of the model -> label of the data set (see `map_labels`).
        allow_partial: compare what both name; predictions that the data set has no name for count
            as missed, and classes that the model has no name for score 0.

    Raises:
        EvaluationError: the labels disagree.
    """
    given = labels_of(labels)
    source = space_of_labels(given) or custom_space(given)
    if allow_partial or names:
        found = map_labels(source, target, names)
        if not allow_partial and (found.left_out or found.never):
            raise EvaluationError(_incomplete(found))
        return found
    mine, theirs = compared(source.labels, target.labels)
    if sorted(mine) == sorted(theirs):
        return map_labels(source, target)
    shared = set(mine) & set(theirs)
    if all(re.fullmatch(r"LABEL_\d+", label) for label in given):
        hint = "Its names are place-holders: say with --model-labels what they are"
    elif shared or (source.name, target.name) in MAPS:
        hint = f"Pass --map-labels to compare by name ({len(shared)} are shared)"
    else:
        hint = "Choose a data set of the same classes"
    raise EvaluationError(
        f"the model's {describe(given)} are not the data set's {describe(target.labels)}. {hint}, "
        "or --label-map FILE with a line for each label that is called otherwise."
    )


def _incomplete(found: LabelMap) -> str:
    parts = [
        f"{text} {describe(labels)}"
        for text, labels in (
            ("no counterpart for the model's", found.left_out),
            ("nothing for the data set's", found.never),
        )
        if labels
    ]
    return (
        f"the label map has {' and '.join(parts)}. Add lines for them, or pass --map-labels too: "
        "the former then count as wrong, the latter score 0."
    )


@dataclass(frozen=True)
class LabelOptions:
    """How a model's labels are compared with those of a data set that calls them otherwise.

    Attributes:
        partial: compare what both name; other predictions count as wrong.
        names: label of the model -> label of the data set.
        model_labels: what the model's classes are, where its config does not say.
        others: labels of other models that `names` are of, too: what is one of theirs alone is not
            looked for in this one.
    """

    partial: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    model_labels: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, map_labels: bool | Mapping[str, str], model_labels: tuple[str, ...] = ()
    ) -> LabelOptions:
        """The options that `map_labels` of `lwmm_hub.evaluate` means."""
        names = map_labels if isinstance(map_labels, Mapping) else {}
        return cls(bool(map_labels), names, model_labels)

    def match(self, labels: Sequence[str], space: LabelSpace, name: str) -> LabelMap:
        """A model's classes in the data set's label space.

        Raises:
            EvaluationError: they disagree; says which model.
        """
        if self.model_labels and len(self.model_labels) != len(labels):
            raise EvaluationError(
                f"{name} has {len(labels)} classes, and {len(self.model_labels)} labels are given."
            )
        own = self.model_labels or tuple(labels)
        mine, theirs = compared(own, self.others)
        names = {
            label: wanted
            for label, wanted in self.names.items()
            if _place(label, own, mine) is not None or _place(label, self.others, theirs) is None
        }
        try:
            return match_labels(
                own,
                space,
                names=names or None,
                allow_partial=self.partial,
            )
        except EvaluationError as error:
            raise EvaluationError(f"{name}: {error}") from error
