"""Parameters that neither names, tables nor a prefix match, and what the values said of them.

The values themselves are read elsewhere (`inferring`); here their verdict is put among the names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lwmm_hub.checkpoint import MERGEABLE, TensorEntry
from lwmm_hub.errors import UsageError
from lwmm_hub.key_map.naming import NamedKeys, Source

MATCH = ("names", "values")
"""By names and tables alone, or by values too where those say nothing."""


@dataclass(frozen=True)
class ValuePair:
    """A tensor of a donor that takes part by its values, where no name matches it.

    Attributes:
        model: index of the donor.
        key: the anchor's key.
        source: the donor's key.
        cosine: centred cosine of the two tensors; of those that they follow, where they follow.
        follows: the anchor's key whose match decided this one, "" where the values themselves did.
    """

    model: int
    key: str
    source: str
    cosine: float
    follows: str = ""


class OpenKeys(NamedTuple):
    """Keys of the anchor and of one donor that found no partner and could have one."""

    anchor: tuple[str, ...]
    donor: tuple[str, ...]

    def alike(self, anchor: Mapping[str, TensorEntry], donor: Mapping[str, TensorEntry]) -> int:
        """How many tensors of at least two dimensions have one of equal shape in the other file."""
        there: dict[tuple[int, ...], int] = {}
        for key in self.donor:
            there[donor[key].shape] = there.get(donor[key].shape, 0) + 1
        found = 0
        for key in self.anchor:
            shape = anchor[key].shape
            if len(shape) >= 2 and there.get(shape):
                there[shape] -= 1
                found += 1
        return found


def open_keys(
    named: Sequence[NamedKeys],
    models: Sequence[Mapping[str, TensorEntry]],
    i: int,
    matched: Sequence[tuple[str, str]],
    never: Mapping[str, str],
) -> OpenKeys:
    """What is left of the anchor and of donor `i` beside the `matched` pairs of keys.

    Only floats that could be averaged, and no tensor with a part that is matched.
    """
    sides = []
    for side, model in ((0, 0), (1, i)):
        taken = {pair[side] for pair in matched}
        keys = dict.fromkeys(source.key for source in named[model].sources.values())
        sides.append(
            tuple(
                key
                for key in keys
                if key not in taken
                and models[model][key].dtype in MERGEABLE
                and key.rpartition(".")[2] not in never
            )
        )
    return OpenKeys(*sides)


def with_pairs(
    mine: NamedKeys,
    my_entries: Mapping[str, TensorEntry],
    theirs: NamedKeys,
    their_entries: Mapping[str, TensorEntry],
    pairs: Sequence[ValuePair],
) -> NamedKeys:
    """A donor's names after its paired tensors took the anchor's names, all of them at once.

    Raises:
        UsageError: a pair names a key that is not there, is matched already, or has another shape.
    """
    names: dict[str, list[tuple[str, Source]]] = {}
    for name, source in mine.sources.items():
        names.setdefault(source.key, []).append((name, source))
    sources: dict[str, Source] = {}
    tables = dict(theirs.tables)
    for pair in pairs:
        if why := _misfit(pair, names, mine, my_entries, theirs, their_entries):
            raise UsageError(f"{pair.key!r} cannot be matched with {pair.source!r}: {why}.")
        for name, source in names[pair.key]:
            sources[name] = Source(pair.source, source.part, source.parts)
    used = {pair.source for pair in pairs}
    for name, source in theirs.sources.items():
        if source.key not in used and name not in sources:
            sources[name] = source
    for name in sources:
        if name in mine.tables and sources[name].key in used:
            tables[name] = mine.tables[name]
        elif sources[name].key in used:
            tables.pop(name, None)
    return replace(theirs, sources=sources, tables=tables)


def _misfit(
    pair: ValuePair,
    names: Mapping[str, Sequence[tuple[str, Source]]],
    mine: NamedKeys,
    my_entries: Mapping[str, TensorEntry],
    theirs: NamedKeys,
    their_entries: Mapping[str, TensorEntry],
) -> str:
    """Why a pair is none; names and tables win over values."""
    if pair.key not in names or pair.source not in their_entries:
        return "there is no such tensor"
    if my_entries[pair.key].shape != their_entries[pair.source].shape:
        return "their shapes differ"
    for name, source in names[pair.key]:
        found = theirs.find(name, mine)
        if found is not None and found.shape(their_entries) == source.shape(my_entries):
            return "it is matched by name"
    return ""


def pairs_sha256(pairs: Sequence[ValuePair]) -> str | None:
    """A checksum of which tensors were matched by values; None where none were."""
    if not pairs:
        return None
    rows = sorted([pair.model, pair.key, pair.source] for pair in pairs)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
