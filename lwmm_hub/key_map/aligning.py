"""Donors whose keys differ from the anchor's by one prefix, and hints where none helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.key_map.naming import NamedKeys, Source, is_other_copy


class Aligned(NamedTuple):
    """A donor's names under the anchor's.

    Attributes:
        named: the donor's names.
        prefix: what was taken off ("-") or put on ("+") its keys, or "".
        displaced: names of the anchor that the donor has as they are and that are matched under
            the prefix instead.
        rivals: prefixes under which as much would have matched; the first by name is taken.
    """

    named: NamedKeys
    prefix: str = ""
    displaced: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()

    def warnings(self, anchor: str, donor: str) -> list[str]:
        """What to say of the choice, to a user who knows the models as `anchor` and `donor`."""
        where = f"{'under' if self.prefix[:1] == '-' else 'without'} {self.prefix[1:]!r}"
        said = []
        if self.displaced:
            said.append(
                f"{donor} has {len(self.displaced)} of the anchor's tensors "
                f"({self.displaced[0]}, ...) under their own names, too: those {where} are merged, "
                "where more of the network is. If that is the wrong one, give a file without it."
            )
        if self.rivals:
            several = ", ".join(repr(rival[1:]) for rival in self.rivals)
            mine = self.prefix[:1] == "+"
            said.append(
                f"{donor} matches {anchor} below {self.prefix[1:]!r} of "
                f"{'the anchor' if mine else 'the donor'} and as well below {several}: "
                f"{self.prefix[1:]!r} is taken, the first by name. If that is the wrong one, "
                + (
                    "give a donor whose keys begin with the right prefix."
                    if mine
                    else "give a file of the right network alone."
                )
            )
        return said


def align(
    mine: NamedKeys,
    my_entries: Mapping[str, TensorEntry],
    theirs: NamedKeys,
    their_entries: Mapping[str, TensorEntry],
) -> Aligned:
    """Put a donor's own names under the anchor's, where one prefix makes the difference.

    Every pair of prefixes that ends at a dot is tried by counting; the one under which most of the
    anchor's names are found with equal shapes wins if it beats matching by name as it is, and is
    reported ("-encoder." was taken off the donor's keys, "+encoder." was put on). What a table
    named stays as it is. A copy that is not the student never displaces a name that matches as it
    is; another network may, since the one found whole is what belongs together. Of prefixes that
    make equal numbers of names match the first by name wins, and the others are told.
    """
    my_shapes = _untabled_shapes(mine, my_entries)
    their_shapes = _untabled_shapes(theirs, their_entries)
    as_they_are = {name for name, shape in their_shapes.items() if my_shapes.get(name) == shape}
    best, changes = (len(as_they_are), 1), [("", "")]
    for sign, prefixes in (("+", _leading(my_shapes)), ("-", _leading(their_shapes))):
        for prefix in sorted(prefixes):
            moved = _moved(sign, prefix, my_shapes, their_shapes)
            made = {_rename(sign, prefix, name) for name in moved}
            copy = is_other_copy(prefix)
            if copy and made & as_they_are:
                continue
            rank = (len(made | (as_they_are - moved)), int(not copy))
            if rank > best:
                best, changes = rank, [(sign, prefix)]
            elif rank == best and changes[0][0]:
                changes.append((sign, prefix))
    (sign, prefix), *others = changes
    if not sign:
        return Aligned(theirs)
    moved = _moved(sign, prefix, my_shapes, their_shapes)
    renamed: dict[str, Source] = {}
    for name in moved:
        renamed[_rename(sign, prefix, name)] = theirs.sources[name]
    displaced = tuple(name for name in my_shapes if name in renamed and name in as_they_are)
    for name, source in theirs.sources.items():
        if name not in moved:
            renamed.setdefault(name, source)  # a name that the prefix did not make does not win
    rivals = tuple(other_sign + other for other_sign, other in others)
    return Aligned(replace(theirs, sources=renamed), sign + prefix, displaced, rivals)


def _untabled_shapes(
    named: NamedKeys, entries: Mapping[str, TensorEntry]
) -> dict[str, tuple[int, ...]]:
    return {n: s.shape(entries) for n, s in named.sources.items() if n not in named.tables}


def _rename(sign: str, prefix: str, name: str) -> str:
    return prefix + name if sign == "+" else name[len(prefix) :]


def _moved(
    sign: str,
    prefix: str,
    mine: Mapping[str, tuple[int, ...]],
    theirs: Mapping[str, tuple[int, ...]],
) -> set[str]:
    """The donor's names that the prefix makes equal to a name and shape of the anchor's.

    With "+", a name that matches as it is stays as it is.
    """
    return {
        name
        for name, shape in theirs.items()
        if (sign == "+" or name.startswith(prefix))
        and mine.get(_rename(sign, prefix, name)) == shape
        and not (sign == "+" and mine.get(name) == shape)
    }


def _leading(names: Mapping[str, object]) -> list[str]:
    """All prefixes of at most four names that at least two keys begin with."""
    counts: dict[str, int] = {}
    for name in names:
        pieces = name.split(".")[:-1]
        for n in range(1, min(len(pieces), 4) + 1):
            prefix = ".".join(pieces[:n]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    return [prefix for prefix, count in counts.items() if count >= 2]


def common_suffixes(
    anchor: Mapping[str, TensorEntry], donor: Mapping[str, TensorEntry], parts: int = 2
) -> list[tuple[str, str]]:
    """Pairs of keys whose last names and shapes agree, for a hint only; each key once."""
    ends: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for key, entry in donor.items():
        if len(entry.shape) >= 2:
            ends.setdefault((".".join(key.split(".")[-parts:]), entry.shape), []).append(key)
    pairs = []
    for key, entry in anchor.items():
        found = ends.get((".".join(key.split(".")[-parts:]), entry.shape))
        if found and len(entry.shape) >= 2:
            pairs.append((key, found.pop()))
    return pairs
