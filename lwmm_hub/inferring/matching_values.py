"""Opened models -> the pairs of tensors that their values match, and the key map with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lwmm_hub.checkpoint import Checkpoint
from lwmm_hub.errors import UnrelatedModelsError, UsageError
from lwmm_hub.key_map import MATCH, DepthOrder, KeyMap, OpenKeys, ValuePair, match_keys
from lwmm_hub.matching import match


class Inferred(NamedTuple):
    """What values match of what names leave over.

    Attributes:
        pairs: per donor in the order of the anchor's file.
        unsure: (donor, the anchor's key) of tensors that several of the donor's resemble alike.
    """

    pairs: tuple[ValuePair, ...]
    unsure: tuple[tuple[int, str], ...]


def match_by(
    how: str, checkpoints: Sequence[Checkpoint], look: bool = False
) -> tuple[KeyMap, tuple[str, ...]]:
    """The key map by `names`, or by `values` too, and what the user should know of it.

    Args:
        how: `names` or `values`.
        checkpoints: the models, the anchor first.
        look: by names alone: read the weights to say what values would match.

    Raises:
        UsageError: `how` is neither.
        UnrelatedModelsError: a donor shares no backbone parameter of at least two dimensions.
    """
    if how not in MATCH:
        raise UsageError(f"match {how!r} is unknown: choose {', '.join(MATCH)}.")
    if how == "values":
        inferred = infer_pairs(checkpoints)
        try:
            key_map = match(*checkpoints, pairs=inferred.pairs)
        except UnrelatedModelsError as error:
            if not inferred.unsure:
                raise
            raise UnrelatedModelsError(
                f"{error} {len(inferred.unsure)} tensors resemble several of a donor's alike: name "
                "a file that holds one copy of its network."
            ) from error
        return key_map, _left_open(key_map, inferred, checkpoints)
    look = look and can_be_read(checkpoints)
    try:
        key_map = match(*checkpoints)
    except UnrelatedModelsError as error:
        found = infer_pairs(checkpoints).pairs if look else ()
        if not found:
            raise
        match(*checkpoints, pairs=found)  # raises where values do not help either
        raise UnrelatedModelsError(
            f"the names of {' and '.join(c.label for c in checkpoints)} share no backbone, but "
            f"{_counted(found)}. Pass --match values to merge them."
        ) from error
    return key_map, _suggestions(key_map, checkpoints, look)


def _suggestions(key_map: KeyMap, checkpoints: Sequence[Checkpoint], look: bool) -> tuple[str, ...]:
    """Where names match less than half of what could match by its shape: what values can do."""
    anchor, *donors = checkpoints
    notes = []
    for i, donor in enumerate(donors, start=1):
        alike = key_map.unmatched[i - 1].alike(anchor.entries, donor.entries)
        named = sum(p.sources[i] is not None and len(p.shape) >= 2 for p in key_map.shared)
        if alike <= named:
            continue
        if not look:
            notes.append(
                f"{alike} tensors of {donor.label} have shapes of the anchor's, but other names: "
                "--match values compares their weights."
            )
        elif found := infer_pairs([anchor, donor]).pairs:
            notes.append(f"names aside, {_counted(found)}: --match values merges them.")
    return tuple(notes)


def _counted(pairs: Sequence[ValuePair]) -> str:
    lowest = min(pair.cosine for pair in pairs)
    return f"{len(pairs)} parameters match by their values (lowest cosine {lowest:.3f})"


def _left_open(
    key_map: KeyMap, inferred: Inferred, checkpoints: Sequence[Checkpoint]
) -> tuple[str, ...]:
    """Warnings about what could be matched and was not: it stays the anchor's."""
    anchor, *donors = checkpoints
    warnings = []
    for i, donor in enumerate(donors, start=1):
        if not any(pair.model == i for pair in inferred.pairs):
            continue
        alike = [key for model, key in inferred.unsure if model == i]
        if alike:
            warnings.append(
                f"{len(alike)} tensors of the anchor (first {alike[0]}) resemble several of "
                f"{donor.label} alike: the anchor's are kept there."
            )
        left = key_map.unmatched[i - 1]
        shapes = {donor.entries[key].shape for key in left.donor}
        small = [
            key
            for key in left.anchor
            if len(anchor.entries[key].shape) < 2 and anchor.entries[key].shape in shapes
        ]
        if small:
            warnings.append(
                f"{len(small)} tensors of one dimension (first {small[0]}) have no certain partner "
                f"in {donor.label}: the anchor's are kept, though weights beside them are merged."
            )
    return tuple(warnings)


def infer_pairs(checkpoints: Sequence[Checkpoint]) -> Inferred:
    """Compare what names leave over, donor by donor; reads those weights, one shape at a time.

    Tensors of at least two dimensions are matched by the optimal assignment of their centred
    cosines, shape by shape; the others follow their module. Deterministic.
    """
    from lwmm_hub.inferring.following import follow  # here, since few merges ask for it

    entries = [checkpoint.entries for checkpoint in checkpoints]
    labels = [checkpoint.label for checkpoint in checkpoints]
    by_name = match_keys(entries, labels, lambda: DepthOrder("", {}))
    pairs: list[ValuePair] = []
    unsure: list[tuple[int, str]] = []
    for i, open_keys in enumerate(by_name.unmatched, start=1):
        cosines, doubtful = _compare(checkpoints[0], checkpoints[i], open_keys)
        named = [
            (mine.key, theirs.key)
            for p in by_name.shared
            if (mine := p.sources[0]) and (theirs := p.sources[i])
        ]
        valued = {key: source for key, (source, _) in cosines.items()}
        followers = follow(open_keys, checkpoints[0], checkpoints[i], named, valued)
        for key in open_keys.anchor:
            if key in cosines:
                pairs.append(ValuePair(i, key, *cosines[key]))
            elif key in followers:
                source, leader = followers[key]
                pairs.append(ValuePair(i, key, source, cosines[leader][1], leader))
        unsure += [(i, key) for key in doubtful]
    return Inferred(tuple(pairs), tuple(unsure))


def _compare(
    anchor: Checkpoint, donor: Checkpoint, open_keys: OpenKeys
) -> tuple[dict[str, tuple[str, float]], list[str]]:
    """The anchor's key -> the donor's and their cosine; and the anchor's keys that are unsure."""
    from lwmm_hub.inferring.comparing import assign, centred_cosines, needed_cosine

    shapes: dict[tuple[int, ...], tuple[list[str], list[str]]] = {}
    for side, (keys, entries) in enumerate(
        ((open_keys.anchor, anchor.entries), (open_keys.donor, donor.entries))
    ):
        for key in keys:
            if len(entries[key].shape) >= 2:
                shapes.setdefault(entries[key].shape, ([], []))[side].append(key)
    found: dict[str, tuple[str, float]] = {}
    unsure: list[str] = []
    for mine, theirs in shapes.values():
        needed = needed_cosine(anchor.entries[mine[0]].elements) if mine else 1.0
        if not theirs or needed >= 1:
            continue
        pairs, doubtful = assign(centred_cosines(anchor, mine, donor, theirs), needed)
        found |= {mine[pair.mine]: (theirs[pair.theirs], pair.cosine) for pair in pairs}
        unsure += [mine[i] for i in doubtful]
    return found, unsure


def can_be_read(checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether all weights are on this machine."""
    return all(
        getattr(reader, "fd", None) is not None or getattr(reader, "path", None) is not None
        for checkpoint in checkpoints
        for reader in checkpoint.readers.values()
    )
