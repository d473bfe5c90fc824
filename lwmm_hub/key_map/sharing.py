"""What models share, in depth order, and why everything else is left out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lwmm_hub.checkpoint import MERGEABLE, TensorEntry, dtype_name
from lwmm_hub.key_map.aligning import align
from lwmm_hub.key_map.averaging import NEVER_AVERAGED, norm_warnings, normed_modules, why_never
from lwmm_hub.key_map.naming import NamedKeys, Source, module_of, name_keys
from lwmm_hub.key_map.ordering import DepthOrder, tabled_order, with_rest
from lwmm_hub.key_map.pairing import OpenKeys, ValuePair, open_keys, with_pairs
from lwmm_hub.key_map.parts import Part, parts_of
from lwmm_hub.key_map.placing import Placing, place_rest, ranker
from lwmm_hub.key_map.reasons import Reasons
from lwmm_hub.key_map.tying import settle, tie, tied_names


class SharedParameter(NamedTuple):
    """One canonical parameter that the anchor shares with at least one donor.

    Attributes:
        name: canonical name.
        layer: canonical module.
        part: name of the part of the model it belongs to.
        shape: the same in all models that have it.
        sources: per model, None where the model lacks it.
    """

    name: str
    layer: str
    part: str
    shape: tuple[int, ...]
    sources: tuple[Source | None, ...]


@dataclass(frozen=True, repr=False)
class KeyMap:
    """What the models share.

    Attributes:
        shared: in depth order; float parameters only.
        parts: of the anchor, in depth order.
        kept: per key of the anchor, why it is the anchor's own; where some parts of a fused tensor
            are, which, and why.
        unused: per donor, key -> why it is not used; of a fused tensor that is used in part, which
            parts are not, and why.
        families: per model, name of its family or None.
        dialects: per model, table -> dialect.
        order_source: where the depth order comes from.
        prefixes: per donor, the prefix that was taken off ("-") or put on ("+") its keys, or "".
        classifiers: per model, shape[0] of the known classifier, or None.
        part_of_key: key of the anchor -> name of the part it belongs to.
        warnings: what the tables know and names and shapes do not show.
        doubtful: shared layers that a model may hold untrained -> standard deviation of the initial
            normal distribution; only values can tell.
        left_out: (donor, layer) -> why values say that the donor's layer is not used.
        unmatched: per donor, what is left of it and of the anchor.
        pairs: what was matched by values, in depth order; None where they were not asked.
        other_classes: (donor, layer) -> why the rows of the donor's classifier are other classes.
        guessed: the shared layers that stand in an order of names, which is a guess.
    """

    shared: tuple[SharedParameter, ...]
    parts: tuple[Part, ...]
    kept: dict[str, str]
    unused: tuple[dict[str, str], ...]
    families: tuple[str | None, ...]
    dialects: tuple[dict[str, str], ...]
    order_source: str
    prefixes: tuple[str, ...]
    classifiers: tuple[int | None, ...]
    part_of_key: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    doubtful: dict[str, float] = field(default_factory=dict)
    left_out: dict[tuple[int, str], str] = field(default_factory=dict)
    unmatched: tuple[OpenKeys, ...] = ()
    pairs: tuple[ValuePair, ...] | None = None
    other_classes: dict[tuple[int, str], str] = field(default_factory=dict)
    guessed: tuple[str, ...] = ()

    def __repr__(self) -> str:  # of all fields it would fill a notebook
        parts = ", ".join(part.name for part in self.parts)
        return (
            f"<KeyMap of {len(self.families)} models: {len(self.shared)} parameters shared in "
            f"{parts or 'no part'}, {len(self.kept)} tensors are the anchor's own>"
        )


def match_keys(
    models: Sequence[Mapping[str, TensorEntry]],
    labels: Sequence[str],
    order: Callable[[], DepthOrder],
    pairs: Sequence[ValuePair] | None = None,
) -> KeyMap:
    """Match the parameters of donors with the anchor's, by canonical name and equal shape.

    Args:
        models: per model, key -> entry in file order; the anchor first.
        labels: per model, what to call it.
        order: gives the anchor's depth order; asked only for layers that no table knows.
        pairs: what is matched by values where names do not match; None where they were not asked.

    Raises:
        UsageError: a pair does not fit the models.
    """
    named = _name_alike(models)
    named_donors, prefixes = [], []
    aligning: list[str] = []
    for i, donor in enumerate(named[1:], start=1):
        aligned = align(named[0], models[0], donor, models[i])
        aligning += aligned.warnings(labels[0], labels[i])
        mine = [pair for pair in pairs or () if pair.model == i]
        named_donors.append(with_pairs(named[0], models[0], aligned.named, models[i], mine))
        prefixes.append(aligned.prefix)
    named = [named[0], *named_donors]
    normed = [normed_modules(s.key for s in keys.sources.values()) for keys in named]
    found: dict[str, tuple[Source | None, ...]] = {}
    left: dict[str, str] = {}
    for name, source in named[0].sources.items():
        found[name], why = _find(name, source, named, models, labels, normed, pairs is not None)
        if why:
            left[name] = why
    tied = settle(
        left,
        tied_names(named[0].sources, models[0]),
        lambda n: why_never(n, named[0].sources[n].key, normed[0]),
    )
    depth, placing = _placed(named[0], models[0], order, [n for n in found if n not in left])
    parts, part_of = parts_of(named[0], depth, placing)
    shared: list[SharedParameter] = []
    reasons = Reasons(named[0].dead)
    part_of_key: dict[str, str] = {}
    for name, source in named[0].sources.items():
        part = part_of(name, source.key)
        part_of_key.setdefault(source.key, part)
        if name in left:
            reasons.add(source, name, left[name])
        else:
            shape = source.shape(models[0])
            shared.append(SharedParameter(name, module_of(name), part, shape, found[name]))
    rank = ranker(named[0], depth, placing)
    shared.sort(key=lambda p: rank(p.name, named[0].sources[p.name].key))
    shared, apart = tie(shared, tied, named[0].tables, parts, models, labels)
    merged_keys = {p.sources[0].key for p in shared if p.sources[0]}
    kept = reasons.told(merged_keys)
    displaced = [key for key in models[0] if key not in merged_keys and key not in kept]
    kept |= dict.fromkeys(displaced, "it is called as a table calls another tensor")
    unused = tuple(_unused(i, named, models, shared, labels, normed) for i in range(1, len(models)))
    classifiers = tuple(
        _classifier_size(keys, entries) for keys, entries in zip(named, models, strict=True)
    )
    used = {p.part for p in shared}
    return KeyMap(
        tuple(shared),
        tuple(part for part in parts if part.name in used),
        kept,
        unused,
        tuple(keys.family for keys in named),
        tuple(keys.dialects for keys in named),
        depth.source,
        tuple(prefixes),
        classifiers,
        part_of_key,
        (
            *aligning,
            *(
                f"{label} holds its {table} whole only below {prefix!r}, a copy that is not the "
                "student: that is taken. If the student is wanted, give a file of it alone."
                for keys, label in zip(named, labels, strict=True)
                for table, prefix in keys.copies.items()
            ),
            *_unlike_conventions(named, labels),
            *_several_networks(named, labels),
            *norm_warnings(normed[0]),
            *apart,
        ),
        {
            p.layer: table.untrained[p.layer]
            for p in shared
            if (table := named[0].tables.get(p.name)) and p.layer in table.untrained
        },
        unmatched=tuple(
            open_keys(named, models, i, _matched(shared, i), NEVER_AVERAGED)
            for i in range(1, len(models))
        ),
        pairs=None if pairs is None else tuple(sorted(pairs, key=_in_order(shared))),
        guessed=_guessed(named[0], shared, depth, placing),
    )


def _name_alike(models: Sequence[Mapping[str, TensorEntry]]) -> list[NamedKeys]:
    """The keys of all models by the tables; of several networks alike that of the same prefix.

    Two streams of one architecture would cross otherwise: `rgb.` of one file with `depth.` of the
    other. A head that one model has is looked for in the others below any wrapper.
    """
    named: list[NamedKeys] = []
    for entries in models:
        before = zip(models, named, strict=False)  # those that are named already
        same = next((keys for other, keys in before if _same_names(other, entries)), None)
        named.append(same or name_keys(entries))
    heads = {table for keys in named for table in keys.found if not table.backbone}
    lacking = [heads.difference(keys.found) for keys in named]
    if all(len(prefixes) == 1 for keys in named for prefixes in keys.places.values()):
        return [
            name_keys(entries, heads=tables) if tables else keys
            for keys, entries, tables in zip(named, models, lacking, strict=True)
        ]
    everywhere = {
        (table, prefix)
        for table, prefixes in named[0].places.items()
        for prefix in prefixes
        if all(prefix in keys.places.get(table, (prefix,)) for keys in named[1:])
    }
    return [
        name_keys(entries, everywhere, tables)
        for entries, tables in zip(models, lacking, strict=True)
    ]


def _same_names(one: Mapping[str, TensorEntry], other: Mapping[str, TensorEntry]) -> bool:
    """Whether two files hold tensors of the same names and shapes, in the same order."""
    return list(one) == list(other) and all(
        mine.shape == theirs.shape
        for mine, theirs in zip(one.values(), other.values(), strict=True)
    )


def _several_networks(named: Sequence[NamedKeys], labels: Sequence[str]) -> tuple[str, ...]:
    """A warning per donor where its network and the anchor's were chosen among several alike."""
    warnings = []
    for keys, label in zip(named[1:], labels[1:], strict=True):
        for table, mine in named[0].places.items():
            theirs = keys.places.get(table, mine)
            if theirs[0] == mine[0] or len(mine) == len(theirs) == 1:
                continue
            which, has = (labels[0], mine) if len(mine) > 1 else (label, theirs)
            warnings.append(
                f"{which} holds {len(has)} {table} networks alike ({', '.join(map(repr, has))}): "
                f"{mine[0]!r} of {labels[0]} is matched with {theirs[0]!r} of {label}. If that is "
                "the wrong one, name a file that holds the right one alone."
            )
    return tuple(warnings)


def _matched(shared: Sequence[SharedParameter], i: int) -> list[tuple[str, str]]:
    """The keys of the anchor and of donor `i` that are (partly) matched."""
    both = [(parameter.sources[0], parameter.sources[i]) for parameter in shared]
    return [(mine.key, theirs.key) for mine, theirs in both if mine and theirs]


def _in_order(shared: Sequence[SharedParameter]) -> Callable[[ValuePair], tuple[int, int]]:
    place = {p.sources[0].key: at for at, p in enumerate(shared) if p.sources[0]}
    return lambda pair: (pair.model, place.get(pair.key, len(place)))


def _unlike_conventions(named: Sequence[NamedKeys], labels: Sequence[str]) -> tuple[str, ...]:
    """A warning per donor whose parameters match by name alone: its network computes otherwise."""
    warnings = []
    for keys, label in zip(named[1:], labels[1:], strict=True):
        for table, (system, convention) in named[0].conventions.items():
            other, unlike = keys.conventions.get(table, (system, convention))
            if unlike != convention:
                warnings.append(
                    f"{labels[0]} ({system}: {convention}) and {label} ({other}: {unlike}) have "
                    f"the same names for unlike {table} networks: what is merged was not trained "
                    "for the anchor's. Expect a poor result, or choose a donor of the same kind."
                )
    return tuple(warnings)


def _placed(
    named: NamedKeys,
    entries: Mapping[str, TensorEntry],
    order: Callable[[], DepthOrder],
    shared: Collection[str],
) -> tuple[DepthOrder, Placing | None]:
    """The anchor's depth order, and where it has what no table names, if one knows its backbone."""
    if not any(table.backbone for table in named.found):
        return order(), None
    depth = tabled_order(named)
    open_layers = {module_of(name) for name in shared if name not in named.tables}
    if len(open_layers) > 1:
        depth = with_rest(depth, order())
    placing = place_rest(named, entries, depth, shared)
    notes = "".join(f", {note}" for note in placing.notes)
    return depth._replace(source=depth.source + notes), placing


def _guessed(
    named: NamedKeys,
    shared: Sequence[SharedParameter],
    depth: DepthOrder,
    placing: Placing | None,
) -> tuple[str, ...]:
    """The layers, in depth order, of which nothing but their names tells the order."""
    if depth.origin != "names":
        return ()
    known = named.tables if placing is not None else ()
    layers = dict.fromkeys(
        p.layer
        for p in shared
        if p.name not in known and p.sources[0] and p.sources[0].key not in named.twins
    )
    return tuple(layers)


def _find(
    name: str,
    source: Source,
    named: Sequence[NamedKeys],
    models: Sequence[Mapping[str, TensorEntry]],
    labels: Sequence[str],
    normed: Sequence[Mapping[str, str]],
    by_value: bool,
) -> tuple[tuple[Source | None, ...], str]:
    """Where the parameter lies in each model, or why the anchor keeps it."""
    entry = models[0][source.key]
    if entry.dtype not in MERGEABLE:
        return (), f"{dtype_name(entry.dtype)} is never averaged"
    if why := why_never(name, source.key, normed[0]):
        return (), why
    shape = source.shape(models[0])
    sources: list[Source | None] = [source]
    reasons = []
    donors = zip(named[1:], models[1:], labels[1:], normed[1:], strict=True)
    for keys, entries, label, their_normed in donors:
        theirs = keys.find(name, named[0])
        if theirs is None:
            sources.append(None)
            reasons.append(f"absent in {label}{', by name and by values' if by_value else ''}")
        elif (other := theirs.shape(entries)) != shape:
            sources.append(None)
            reasons.append(f"shape differs: {shape} vs {other}" + _in(label, len(models)))
        elif entries[theirs.key].dtype not in MERGEABLE:
            sources.append(None)
            reasons.append(f"{dtype_name(entries[theirs.key].dtype)} in {label}")
        elif never := why_never(name, theirs.key, their_normed):
            sources.append(None)
            reasons.append(f"{never} ({label})")
        else:
            sources.append(theirs)
    why = "; ".join(dict.fromkeys(reasons)) if all(s is None for s in sources[1:]) else ""
    return tuple(sources), why


def _in(label: str, models: int) -> str:
    return f" in {label}" if models > 2 else ""


def _unused(
    i: int,
    named: Sequence[NamedKeys],
    models: Sequence[Mapping[str, TensorEntry]],
    shared: Sequence[SharedParameter],
    labels: Sequence[str],
    normed: Sequence[Mapping[str, str]],
) -> dict[str, str]:
    """Why each key of donor `i`, or which part of it, is no source of anything."""
    sources = {source for p in shared if (source := p.sources[i]) is not None}
    merged = {p.name for p in shared if p.sources[i] is not None}
    reasons = Reasons(named[i].dead)
    for name, source in named[i].sources.items():
        if source in sources:
            continue
        mine = named[0].find(name, named[i])
        entry = models[i][source.key]
        if mine is None:
            why = f"absent in {labels[0]}"
        elif entry.dtype not in MERGEABLE or (dtype := models[0][mine.key].dtype) not in MERGEABLE:
            other = entry.dtype if entry.dtype not in MERGEABLE else dtype
            why = f"{dtype_name(other)} is never averaged"
        elif never := (
            why_never(name, source.key, normed[i]) or why_never(name, mine.key, normed[0])
        ):
            why = never
        elif name in merged:
            why = f"{labels[0]} has one tensor for this and for another, which is merged for both"
        else:
            why = f"shape differs: {mine.shape(models[0])} vs {source.shape(models[i])}"
        reasons.add(source, name, why)
    used = {source.key for source in sources}
    unused = reasons.told(used)
    for key in models[i]:
        if key not in used:
            displaced = key in named[0].sources and key in named[i].sources
            why = "another tensor has its place" if displaced else f"absent in {labels[0]}"
            unused.setdefault(key, why)
    return {key: unused[key] for key in models[i] if key in unused}


def _classifier_size(named: NamedKeys, entries: Mapping[str, TensorEntry]) -> int | None:
    for table in named.found:
        if table.classifier and (source := named.sources.get(table.classifier)):
            return entries[source.key].shape[0]
    return None
