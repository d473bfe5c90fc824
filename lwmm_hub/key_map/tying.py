"""Tensors that a file holds once under several names: one parameter, with one layer.

`torch.save` keeps what a network ties (an embedding that is its output layer, too, a head that each
decoder block has): such names share storage, offset and shape. Were each merged with the weights of
its own layer, they would come apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.key_map.naming import Source, module_of
from lwmm_hub.key_map.parts import Part

if TYPE_CHECKING:  # at run time it imports this module
    from lwmm_hub.key_map.sharing import SharedParameter


def tied_names(
    sources: Mapping[str, Source], entries: Mapping[str, TensorEntry]
) -> list[tuple[str, ...]]:
    """Groups of canonical names that lie at one place of a file, in file order."""
    groups: dict[object, list[str]] = {}
    for name, source in sources.items():
        entry = entries[source.key]
        if entry.elements:
            groups.setdefault((entry.place, source.part, source.parts), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def settle(
    left: dict[str, str],
    groups: Sequence[tuple[str, ...]],
    never: Callable[[str], str | None],
) -> list[tuple[str, ...]]:
    """The groups that are merged: where some name of one is, all are; `left` is mended.

    Args:
        left: name -> why it stays the anchor's.
        groups: names that are one tensor.
        never: why a name's tensor is never averaged; none of its group is, then.
    """
    merged = []
    for names in groups:
        if why := next(filter(None, map(never, names)), None):
            for name in names:
                left.setdefault(name, why)
        elif any(name not in left for name in names):
            merged.append(names)
            for name in names:
                left.pop(name, None)
    return merged


def tie(
    shared: Sequence[SharedParameter],
    groups: Sequence[tuple[str, ...]],
    tabled: Collection[str],
    parts: Sequence[Part],
    models: Sequence[Mapping[str, TensorEntry]],
    labels: Sequence[str],
) -> tuple[list[SharedParameter], list[str]]:
    """One layer, and one tensor of each donor, for all names of a parameter.

    Args:
        shared: in depth order.
        groups: of its names, those that are one tensor.
        tabled: names that a table knows.
        parts: of the anchor.
        models: per model, key -> entry; the anchor first.
        labels: per model, what to call it.

    Returns:
        The parameters in depth order, and a warning per donor that has more tensors than one there.
    """
    if not groups:
        return list(shared), []
    named = {parameter.name: parameter for parameter in shared}
    own = {p.name: p.sources[0] for p in shared if p.sources[0] is not None}
    key_of = {name: source.key for name, source in own.items()}
    twice = _registered_twice(groups, key_of)
    group_of = {name: names for names in groups for name in names}
    in_depth: dict[tuple[str, ...], list[str]] = {}
    for name in named:
        if name in group_of:
            in_depth.setdefault(group_of[name], []).append(name)
    leads = {_lead(n, tabled, key_of, g[0] in twice): g for g, n in in_depth.items()}
    backbones = {part.name for part in parts if part.backbone}
    apart: dict[int, list[tuple[str, str]]] = {}
    ordered = []
    for name, parameter in named.items():
        if name not in group_of:
            ordered.append(parameter)
        if name not in leads:
            continue
        names = (name, *(other for other in leads[name] if other != name))
        if leads[name][0] in twice:  # a wrapper says less than `encoder` does
            held = [named[n].part for n in names if named[n].part in backbones]
            parameter = parameter._replace(part=next(iter(held), parameter.part))
        theirs = _one_each([named[n] for n in names], len(models))
        for other in names:
            sources: list[Source | None] = [own[other]]
            for i, chosen in enumerate(theirs, start=1):
                mine = named[other].sources[i]
                same = mine and chosen and _is_one(mine, chosen, models[i])
                sources.append(mine if same else chosen)
                if mine and not same:
                    apart.setdefault(i, []).append((key_of[other], key_of[name]))
            ordered.append(parameter._replace(name=other, sources=tuple(sources)))
    return ordered, [
        f"{pairs[0][0]} and {pairs[0][1]} are one tensor of {labels[0]}, and two of {labels[i]}"
        + (f" (so are {len(pairs) - 1} others)" if pairs[1:] else "")
        + f": for both that is merged which {labels[i]} has for the latter."
        for i, pairs in apart.items()
    ]


def _lead(
    names: Sequence[str], tabled: Collection[str], key_of: Mapping[str, str], twice: bool
) -> str:
    """Of names in depth order that are one tensor, the one whose layer all of them have.

    That is the last, of those that a table knows if there are any. But where a whole network is
    there twice (`self.encoder = self.net.encoder`), the order of registration does not tell which
    place is its own: it is the inner one.
    """
    known = [name for name in names if name in tabled] or names
    return max(known, key=lambda name: key_of[name].count(".")) if twice else known[-1]


def _registered_twice(groups: Sequence[Sequence[str]], key_of: Mapping[str, str]) -> set[str]:
    """The first names of groups that belong to a container of several modules with two names."""
    held = Counter(above for key in set(key_of.values()) for above in _containers(key))
    pairs: dict[tuple[str, str], list[str]] = {}
    for first, *others in groups:
        for other in others:
            mine, theirs = key_of[first].split("."), key_of[other].split(".")
            for end in range(1, min(len(mine), len(theirs))):
                if mine[-end] != theirs[-end]:
                    break
                pair = ".".join(mine[:-end]), ".".join(theirs[:-end])
                pairs.setdefault(pair, []).append(first)
    found = set()
    for (mine_above, theirs_above), firsts in pairs.items():
        keys = {key_of[name] for name in firsts}
        whole = len(keys) == held[mine_above] == held[theirs_above]
        if whole and len({module_of(key) for key in keys}) > 1:
            found.update(firsts)
    return found


def _containers(key: str) -> list[str]:
    """What stands before each dot of a key."""
    pieces = key.split(".")
    return [".".join(pieces[:n]) for n in range(1, len(pieces))]


def _one_each(parameters: Sequence[SharedParameter], models: int) -> list[Source | None]:
    """Per donor, the first that it has of a parameter's names."""
    return [
        next((source for p in parameters if (source := p.sources[i]) is not None), None)
        for i in range(1, models)
    ]


def _is_one(one: Source, other: Source, entries: Mapping[str, TensorEntry]) -> bool:
    """Whether both are the same part of the same tensor."""
    return one[1:] == other[1:] and entries[one.key].place == entries[other.key].place
