"""Label spaces: what the classes of a model or a data set are, and how one is told in another's.

Three conventions meet here, and each is said aloud:

- A label file holds what its data set calls *ids*. `LabelSpace.indices` turns them into label
  indices 0 to C-1, with 255 wherever nothing is labelled or scored. Nothing else is dropped: an id
  that the space does not know is an error.
- Some label files call 0 "background" or "other" and begin counting at 1 (ADE20K). Either the
  space knows that, or `reduce_labels` does it for a data set without a table.
- A `LabelMap` takes indices of one space to indices of another; 255 is what has no counterpart. In
  a truth that is ignored; in a prediction it counts as missed (`ConfusionMatrix(no_class=255)`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.label_tables import MAPS, SYNONYMS, TABLES
from lwmm_hub.evaluation.values import IGNORED, Labels

_NOTHING = np.uint16(65535)  # in a table of ids: no id of this space


@dataclass(frozen=True, eq=False)
class LabelSpace:
    """Classes in order, as one model or data set has them.

    Attributes:
        name: as `label_space` knows it; "custom-C" where no table has it.
        labels: the classes' names, in label order.
        colors: uint8 RGB, (classes, 3), for overlays.
        ids: what label files hold for each class, in label order.
        void: what label files hold where nothing is labelled or scored, beside 255.
        things: indices of the countable classes; None where the space does not say.
    """

    name: str
    labels: tuple[str, ...]
    colors: NDArray[np.uint8]
    ids: tuple[int, ...]
    void: tuple[int, ...] = ()
    things: frozenset[int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def indices(self, ids: Labels, where: str = "a label map") -> NDArray[np.uint8]:
        """Ids of a label file as label indices.

        Args:
            ids: integers of any shape, as the file holds them.
            where: what the map is of, for the message.

        Returns:
            uint8 of the same shape: 0 to C-1, or 255 where nothing is to be scored.

        Raises:
            EvaluationError: an id that the space does not know, or no integers.
        """
        if ids.dtype.kind not in "iub":
            raise EvaluationError(
                f"{where} holds {ids.dtype} values, not label ids. Name the column or folder of "
                "the labels."
            )
        if not ids.size:
            return np.zeros(ids.shape, np.uint8)
        table = self._table
        low, high = int(ids.min()), int(ids.max())
        if low >= 0 and high < len(table):
            found: NDArray[np.uint16] = table[ids]
            if not (found == _NOTHING).any():
                return found.astype(np.uint8)
        values = np.unique(ids).tolist()
        foreign = [v for v in values if not 0 <= v < len(table) or table[v] == _NOTHING]
        raise EvaluationError(
            f"{where} holds the ids {shorten(foreign)}, which {self.name} does not have (it has "
            f"{_ranges(self.ids)}; ignored: {_ranges((*self.void, IGNORED))}). Name the label "
            "space of the data set."
        )

    @functools.cached_property
    def _table(self) -> NDArray[np.uint16]:
        """Id -> label index, 255 for void, `_NOTHING` for no id of this space."""
        table = np.full(max(*self.ids, *self.void, IGNORED) + 1, _NOTHING, np.uint16)
        table[[IGNORED, *self.void]] = IGNORED
        table[list(self.ids)] = np.arange(len(self.ids), dtype=np.uint16)
        return table


@dataclass(frozen=True, eq=False)
class LabelMap:
    """How labels of one space are told in another one.

    Attributes:
        source: the labels that are taken.
        target: the labels that are given.
        table: label index of the source -> index in the target, or 255; 256 entries of uint8, so
            that 255 stays 255, or 65536 of uint16 for a target with more classes.
    """

    source: LabelSpace
    target: LabelSpace
    table: NDArray[np.uint8] | NDArray[np.uint16]

    def __call__(self, indices: Labels) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Label indices of the source as indices of the target; one look-up a pixel.

        Raises:
            EvaluationError: an index that the source does not have.
        """
        if indices.size:
            known = indices[indices != IGNORED] if int(indices.max()) == IGNORED else indices
            low, high = (int(known.min()), int(known.max())) if known.size else (0, 0)
            if low < 0 or high >= len(self.source):
                raise EvaluationError(
                    f"labels {low} to {high} where {self.source.name} has 0 to "
                    f"{len(self.source) - 1}. Name the label space they are of."
                )
        return self.table[indices]

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        count = len(self.source)
        return count == len(self.target) and bool((self.table[:count] == np.arange(count)).all())

    @property
    def left_out(self) -> tuple[str, ...]:
        """Labels of the source that the target has no counterpart of."""
        found = self.table[: len(self.source)] != IGNORED
        return tuple(label for label, ok in zip(self.source.labels, found, strict=True) if not ok)

    @property
    def never(self) -> tuple[str, ...]:
        """Labels of the target that nothing is mapped to."""
        reached = set(self.table[: len(self.source)].tolist())
        return tuple(label for i, label in enumerate(self.target.labels) if i not in reached)


def label_space(name: str) -> LabelSpace:
    """A label space by name.

    >>> label_space("cityscapes-19").labels[:3]
    ('road', 'sidewalk', 'building')
    >>> label_space("ade20k-150").ids[:3], label_space("ade20k-150").void
    ((1, 2, 3), (0,))

    Raises:
        EvaluationError: no table has that name.
    """
    if name not in TABLES:
        raise EvaluationError(
            f"no label space is called {name!r}. There are {', '.join(sorted(TABLES))}."
        )
    return _from_table(name)


def label_space_names() -> tuple[str, ...]:
    """The names that `label_space` knows."""
    return tuple(TABLES)


@functools.cache
def _from_table(name: str) -> LabelSpace:
    table = TABLES[name]
    entries = [entry.strip() for entry in table.classes.split(";")]
    labels, colors, things = [], [], set()
    for index, entry in enumerate(entries):
        label, _, color = entry.rpartition(" ")
        if label.startswith("*"):
            things.add(index)
        labels.append(label.removeprefix("*"))
        colors.append(list(bytes.fromhex(color)))
    return LabelSpace(
        name,
        tuple(labels),
        np.array(colors, np.uint8),
        table.ids or tuple(range(len(labels))),
        table.void,
        frozenset(things) if table.things else None,
    )


def custom_space(labels: Sequence[str], name: str | None = None) -> LabelSpace:
    """A label space for classes that no table has: ids 0 to C-1, 255 ignored, made-up colours.

    Raises:
        EvaluationError: no labels, a label twice, or more than 255.
    """
    names = [canonical(label) for label in labels]
    twice = sorted({label for label, n in zip(labels, names, strict=True) if names.count(n) > 1})
    if twice:
        raise EvaluationError(f"labels that mean the same: {shorten(twice)}. Give each its own.")
    if not 0 < len(labels) <= IGNORED:
        raise EvaluationError(f"{len(labels)} labels; a label space has 1 to {IGNORED}.")
    order = np.arange(1, len(labels) + 1)
    # bits of the index spread over the three colours, as PASCAL VOC's palette does it
    colors = np.zeros((len(labels), 3), np.uint8)
    for bit in range(3):
        for channel in range(3):
            colors[:, channel] |= ((order >> (3 * bit + channel)) & 1).astype(np.uint8) << (7 - bit)
    return LabelSpace(
        name or f"custom-{len(labels)}", tuple(labels), colors, tuple(range(len(labels)))
    )


def counted_space(labels: Sequence[str]) -> LabelSpace:
    """The label space of classes that are numbered 0 to C-1, whatever a table's own files hold.

    >>> counted_space(label_space("ade20k-150").labels).ids[:3]
    (0, 1, 2)

    Raises:
        EvaluationError: no labels, a label twice, or more than 255.
    """
    known = space_of_labels(labels)
    if known is None:
        return custom_space(labels)
    return replace(known, ids=tuple(range(len(known))), void=())


def canonical(label: str) -> str:
    """A class name as it is compared: case, spaces, '-', '_' and synonyms do not count.

    Of "road, route" the first name is taken (ADE20K's long list).

    >>> canonical("Traffic_Light"), canonical("pavement"), canonical("bed ")
    ('traffic light', 'sidewalk', 'bed')
    >>> canonical("sidewalk, pavement"), canonical("Traffic Sign (Back)")
    ('sidewalk', 'traffic sign back')
    """
    first = label.partition(",")[0]
    plain = " ".join(re.sub(r"[\W_]+", " ", first.casefold()).split())
    return _SAME.get(plain, plain)


_SAME = {name: group[0] for group in SYNONYMS for name in group}


def space_of_labels(labels: Sequence[str] | Mapping[Any, str]) -> LabelSpace | None:
    """The named space whose classes these are, in this order; None where there is none.

    Args:
        labels: names in label order, or an `id2label`.
    """
    wanted = [canonical(label) for label in labels_of(labels)]
    for name, table in TABLES.items():
        if table.classes.count(";") + 1 == len(wanted):
            space = _from_table(name)
            if [canonical(label) for label in space.labels] == wanted:
                return space
    return None


def labels_of(id2label: Sequence[str] | Mapping[Any, str]) -> tuple[str, ...]:
    """Names in label order, of an `id2label` as configurations have it (keys may be text).

    Raises:
        EvaluationError: keys that are not 0 to C-1, or names that are no text.
    """
    if isinstance(id2label, Mapping):
        try:
            found = {int(key): name for key, name in id2label.items()}
        except (TypeError, ValueError):
            found = {}
        if sorted(found) != list(range(len(id2label))) or not found:
            raise EvaluationError(
                f"id2label has the keys {shorten(id2label)}, not 0 to {len(id2label) - 1}. Correct "
                "the model's config.json."
            )
        id2label = [found[i] for i in range(len(found))]
    if isinstance(id2label, str) or not all(isinstance(name, str) for name in id2label):
        raise EvaluationError("class names are texts. Correct the model's config.json.")
    return tuple(id2label)


def map_labels(
    source: LabelSpace, target: LabelSpace, names: Mapping[str, str] | None = None
) -> LabelMap:
    """How labels of `source` are told in `target`.

    By name (`canonical`), except where a table of ours or `names` says otherwise. What has no
    counterpart becomes 255; `LabelMap.left_out` and `LabelMap.never` say what that is.

    Args:
        source: the labels that there are.
        target: the labels that are wanted.
        names: label of the source -> label of the target, for what their names do not tell.

    Raises:
        EvaluationError: `names` has a label that the spaces do not have, or nothing is shared.
    """
    by_name = {canonical(label): index for index, label in enumerate(target.labels)}
    told = {
        **{canonical(a): b for a, b in MAPS.get((source.name, target.name), {}).items()},
        **{canonical(a): b for a, b in (names or {}).items()},
    }
    known = {canonical(label) for label in source.labels}
    foreign = [a for a in names or {} if canonical(a) not in known]
    foreign += [b for b in told.values() if canonical(b) not in by_name]
    if foreign:
        raise EvaluationError(
            f"the label map names {shorten(foreign)}, which is neither of the {len(source)} labels "
            f"of {source.name} nor of the {len(target)} of {target.name}."
        )
    wide = len(target) > IGNORED or len(source) > IGNORED
    table = np.full(65536 if wide else 256, IGNORED, np.uint16 if wide else np.uint8)
    for index, label in enumerate(source.labels):
        name = canonical(label)
        table[index] = by_name.get(canonical(told[name]) if name in told else name, IGNORED)
    if (table == IGNORED).all():
        raise EvaluationError(
            f"{describe(source.labels)} and {describe(target.labels)} share no label. Give a map "
            "from the one to the other."
        )
    return LabelMap(source, target, table)


def match_labels(
    labels: Sequence[str] | Mapping[Any, str],
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
    if sorted(map(canonical, given)) == sorted(map(canonical, target.labels)):
        return map_labels(source, target)
    shared = {canonical(label) for label in given} & {canonical(label) for label in target.labels}
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


def reduce_labels(ids: Labels) -> NDArray[np.uint8]:
    """Labels counted from 1, with 0 for background, as labels counted from 0, with 255 for it.

    What image processors call `do_reduce_labels`. 255 stays 255.

    >>> reduce_labels(np.array([0, 1, 150, 255]))
    array([255,   0, 149, 255], dtype=uint8)

    Raises:
        EvaluationError: a value outside 0 to 255.
    """
    if ids.size and not (ids.min() >= 0 and ids.max() <= IGNORED):
        raise EvaluationError(
            f"labels {ids.min()} to {ids.max()}: only 0 to 255 can be counted down. Name the label "
            "space of the data set."
        )
    table = np.arange(-1, IGNORED, dtype=np.int16).astype(np.uint8)  # -1 becomes 255
    table[IGNORED] = IGNORED
    reduced: NDArray[np.uint8] = table[ids]
    return reduced


def describe(labels: Sequence[str]) -> str:
    """A label list in a message: how many, and the first few.

    >>> describe(["road", "sidewalk", "building", "wall", "fence", "pole"])
    '6 labels (road, sidewalk, building, wall, ...)'
    """
    return f"{len(labels)} label{'s' * (len(labels) != 1)} ({shorten(labels)})"


def shorten(values: Any, most: int = 4) -> str:
    """The first few of many, in a message."""
    texts = [str(value) for value in values]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")


def _ranges(values: Sequence[int]) -> str:
    """Whole numbers in a message: '0 to 18, 255'."""
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return shorten(f"{r[0]} to {r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
