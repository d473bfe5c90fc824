"""Label spaces: what the classes of a model or a data set are.

Three conventions meet here, and each is said aloud:

- A label file holds what its data set calls *ids*. `LabelSpace.indices` turns them into label
  indices 0 to C-1, with `LabelSpace.ignored` wherever nothing is labelled or scored: 255, or 65535
  where there are over 255 classes. Nothing else is dropped: an id that the space does not know is
  an error.
- Some label files call 0 "background" or "other" and begin counting at 1 (ADE20K): the space knows
  that, by its `ids` and `void`.
- A `LabelMap` takes indices of one space to indices of another, and what has no counterpart to
  what is ignored. In a truth nothing is counted there; in a prediction it counts as missed
  (`ConfusionMatrix(no_class=...)`).
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError, EvaluationUsageError
from lwmm_hub.evaluation.label_tables import SYNONYMS, TABLES
from lwmm_hub.evaluation.values import IGNORED, WIDE_IGNORED, Labels

_NOTHING = -1  # in a table of ids: no id of this space
_MOST_ID = 2**24 - 1  # three channels of a byte each


@dataclass(frozen=True, eq=False)
class LabelSpace:
    """Classes in order, as one model or data set has them.

    Attributes:
        name: as `label_space` knows it; "custom-C" where no table has it.
        labels: the classes' names, in label order.
        colors: uint8 RGB, (classes, 3), for overlays.
        ids: what label files hold for each class, in label order.
        void: what label files hold where nothing is labelled or scored, beside `ignored`.
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

    @property
    def ignored(self) -> int:
        """The label index that is counted nowhere: 255, or 65535 where 255 is a class."""
        return IGNORED if len(self) <= IGNORED else WIDE_IGNORED

    def indices(
        self, ids: Labels, where: str = "a label map"
    ) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Ids of a label file as label indices.

        Args:
            ids: integers (or bools, for 0 and 1) of any shape, as the file holds them.
            where: what the map is of, for the message.

        Returns:
            Of the same shape, 0 to C-1, or `ignored` where nothing is to be scored: uint8, or
            uint16 where there are over 255 classes.

        Raises:
            EvaluationError: an id that the space does not know, or no integers.
        """
        if ids.dtype.kind == "b":  # a mask of two classes; as an index numpy takes it for a filter
            ids = ids.astype(np.uint8)
        if ids.dtype.kind not in "iu":
            raise EvaluationError(
                f"{where} holds {ids.dtype} values, not label ids. Name the column or folder of "
                "the labels."
            )
        kind = np.uint8 if self.ignored == IGNORED else np.uint16
        if not ids.size:
            return np.zeros(ids.shape, kind)
        table = self._table
        low, high = int(ids.min()), int(ids.max())
        if low >= 0 and high < len(table):
            found: NDArray[np.int32] = table[ids]
            if not (found == _NOTHING).any():
                return found.astype(kind)
        values = np.unique(ids).tolist()
        foreign = [v for v in values if not 0 <= v < len(table) or table[v] == _NOTHING]
        raise EvaluationError(
            f"{where} holds the ids {shorten(foreign)}, which {self.name} does not have (it has "
            f"{_ranges(self.ids)}; ignored: {_ranges((*self.void, self.ignored))}). Name the label "
            "space of the data set."
        )

    @functools.cached_property
    def _table(self) -> NDArray[np.int32]:
        """Id -> label index, `ignored` for void, `_NOTHING` for no id of this space."""
        low, high = min(*self.ids, *self.void, 0), max(*self.ids, *self.void, self.ignored)
        if low < 0 or high > _MOST_ID:
            raise EvaluationError(
                f"{self.name} has the id {low if low < 0 else high}: label files hold 0 to "
                f"{_MOST_ID}. Number its classes otherwise."
            )
        table = np.full(high + 1, _NOTHING, np.int32)
        table[[self.ignored, *self.void]] = self.ignored
        table[list(self.ids)] = np.arange(len(self.ids), dtype=np.int32)
        return table


def label_space(name: str) -> LabelSpace:
    """A label space by name.

    >>> label_space("cityscapes-19").labels[:3]
    ('road', 'sidewalk', 'building')
    >>> label_space("ade20k-150").ids[:3], label_space("ade20k-150").void
    ((1, 2, 3), (0,))

    Raises:
        EvaluationUsageError: no table has that name.
    """
    if name not in TABLES:
        raise EvaluationUsageError(
            f"no label space is called {name!r}. There are {', '.join(sorted(TABLES))}."
        )
    return _from_table(name)


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
    """A label space for classes that no table has: ids 0 to C-1 and made-up colours.

    Classes of one text get their numbers behind it, since ImageNet has two cranes.

    >>> custom_space(["crane", "heron", "crane"]).labels
    ('crane (0)', 'heron', 'crane (2)')

    Raises:
        EvaluationError: no labels, two that mean the same, or more than 16 bits hold.
    """
    if not 0 < len(labels) <= WIDE_IGNORED:
        raise EvaluationError(f"{len(labels)} labels; a label space has 1 to {WIDE_IGNORED}.")
    often = Counter(labels)
    own = tuple(f"{x} ({i})" if often[x] > 1 else x for i, x in enumerate(labels))
    names = Counter(map(whole, own))
    if twice := sorted({label for label in own if names[whole(label)] > 1}):
        raise EvaluationError(f"labels that mean the same: {shorten(twice)}. Give each its own.")
    order = np.arange(1, len(own) + 1)
    # bits of the index spread over the three colours, as PASCAL VOC's palette does it
    colors = np.zeros((len(own), 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((order >> (3 * bit + channel)) & 1).astype(np.uint8) << (7 - bit)
    return LabelSpace(name or f"custom-{len(own)}", own, colors, tuple(range(len(own))))


def counted_space(labels: Sequence[str]) -> LabelSpace:
    """The label space of classes that are numbered 0 to C-1, whatever a table's own files hold.

    >>> counted_space(label_space("ade20k-150").labels).ids[:3]
    (0, 1, 2)

    Raises:
        EvaluationError: as `custom_space` does.
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
    return whole(label.partition(",")[0])


def whole(label: str) -> str:
    """As `canonical`, with all names of a class that has several.

    >>> whole("tub, vat")
    'tub vat'
    """
    plain = " ".join(re.sub(r"[\W_]+", " ", label.casefold()).split())
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
                f"id2label has the keys {shorten(id2label)}, not 0 to {len(id2label) - 1}. Number "
                "the classes from 0 on."
            )
        id2label = [found[i] for i in range(len(found))]
    if isinstance(id2label, str) or not all(isinstance(name, str) for name in id2label):
        raise EvaluationError("class names are texts. Name every class by one.")
    return tuple(id2label)


def describe(labels: Sequence[str], most: int = 4) -> str:
    """A label list in a message: how many, and the first few.

    >>> describe(["road", "sidewalk", "building", "wall", "fence", "pole"])
    '6 labels (road, sidewalk, building, wall, ...)'
    """
    return f"{len(labels)} label{'s' * (len(labels) != 1)} ({shorten(labels, most)})"


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
