"""Donors whose keys differ from the anchor's by one prefix, and hints where none helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.key_map.naming import NamedKeys


def align(
    mine: NamedKeys,
    my_entries: Mapping[str, TensorEntry],
    theirs: NamedKeys,
    their_entries: Mapping[str, TensorEntry],
) -> tuple[NamedKeys, str]:
    """Put a donor's own names under the anchor's, where one prefix makes the difference.

    Every pair of prefixes that ends at a dot is tried by counting; the one with most equal names
    and shapes wins if it beats matching by name as it is, and is reported ("-encoder." was taken
    off the donor's keys, "+encoder." was put on).
    """
    my_shapes = {name: s.shape(my_entries) for name, s in mine.sources.items()}
    their_shapes = {name: s.shape(their_entries) for name, s in theirs.sources.items()}
    plain = sum(my_shapes.get(name) == shape for name, shape in their_shapes.items())
    best, change = plain, ("", "")
    for prefix in _leading(my_shapes):
        count = sum(my_shapes.get(prefix + name) == s for name, s in their_shapes.items())
        if count > best:
            best, change = count, ("+", prefix)
    for prefix in _leading(their_shapes):
        count = sum(
            my_shapes.get(name[len(prefix) :]) == s
            for name, s in their_shapes.items()
            if name.startswith(prefix)
        )
        if count > best:
            best, change = count, ("-", prefix)
    sign, prefix = change
    if not sign:
        return theirs, ""
    renamed = {}
    for name, source in theirs.sources.items():
        if sign == "+":
            renamed[prefix + name] = source
        elif name.startswith(prefix):
            renamed[name[len(prefix) :]] = source
        else:
            renamed[name] = source
    return replace(theirs, sources=renamed), sign + prefix


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
