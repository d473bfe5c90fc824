"""Donors whose keys differ from the anchor's by one prefix, and hints where none helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.key_map.naming import NamedKeys, Source, is_other_copy


def align(
    mine: NamedKeys,
    my_entries: Mapping[str, TensorEntry],
    theirs: NamedKeys,
    their_entries: Mapping[str, TensorEntry],
) -> tuple[NamedKeys, str, tuple[str, ...]]:
    """Put a donor's own names under the anchor's, where one prefix makes the difference.

    Every pair of prefixes that ends at a dot is tried by counting; the one under which most of the
    anchor's names are found with equal shapes wins if it beats matching by name as it is, and is
    reported ("-encoder." was taken off the donor's keys, "+encoder." was put on). What a table
    named stays as it is. A copy that is not the student never displaces a name that matches as it
    is; another network may, since the one found whole is what belongs together.

    Returns:
        the donor's names, the prefix, and the names of the anchor that the donor has as they are
        and that are matched under the prefix instead.
    """
    my_shapes = _untabled_shapes(mine, my_entries)
    their_shapes = _untabled_shapes(theirs, their_entries)
    as_they_are = {name for name, shape in their_shapes.items() if my_shapes.get(name) == shape}
    best, change = (len(as_they_are), 1), ("", "")
    for sign, prefixes in (("+", _leading(my_shapes)), ("-", _leading(their_shapes))):
        for prefix in prefixes:
            moved = _moved(sign, prefix, my_shapes, their_shapes)
            made = {_rename(sign, prefix, name) for name in moved}
            copy = is_other_copy(prefix)
            if copy and made & as_they_are:
                continue
            rank = (len(made | (as_they_are - moved)), int(not copy))
            if rank > best:
                best, change = rank, (sign, prefix)
    sign, prefix = change
    if not sign:
        return theirs, "", ()
    moved = _moved(sign, prefix, my_shapes, their_shapes)
    renamed: dict[str, Source] = {}
    for name in moved:
        renamed[_rename(sign, prefix, name)] = theirs.sources[name]
    displaced = tuple(name for name in my_shapes if name in renamed and name in as_they_are)
    for name, source in theirs.sources.items():
        if name not in moved:
            renamed.setdefault(name, source)  # a name that the prefix did not make does not win
    return replace(theirs, sources=renamed), sign + prefix, displaced


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
