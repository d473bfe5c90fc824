"""Match models: which parameters they share, in which depth order, and why others are left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from lwmm_hub.checkpoint.entries import MERGEABLE, TensorEntry, dtype_name
from lwmm_hub.errors import UnrelatedModelsError
from lwmm_hub.families import TABLES, Dialect, Table

BACKBONES = ("backbone", "base_net", "encoder", "features", "feature_extractor", "trunk", "stem")
HEADS = (
    "auxiliary_head",
    "classifier",
    "cls_head",
    "decode_head",
    "decoder",
    "fc",
    "head",
    "heads",
    "last_layer",
    "neck",
    "segmentation_head",
    "up",
)

_NORM = "a part of weight norm or spectral norm is never averaged by itself"
_IMAGES = "constants of the anchor's image processing are never averaged"
# last name of a float tensor that has no mean -> why; integers and booleans never have one
NEVER_AVERAGED = {
    "attn_mask_probs": "the state of a training schedule is never averaged",  # EoMT
    "empty_weight": "class weights of a loss are never averaged",  # Mask2Former and its kin
    "num_batches_tracked": "a counter is never averaged",  # where a whole file was cast to floats
    "original0": _NORM,
    "original1": _NORM,
    "pixel_mean": _IMAGES,
    "pixel_std": _IMAGES,
    "relative_position_index": "an index is never averaged",
    "weight_g": _NORM,
    "weight_u": _NORM,
    "weight_v": _NORM,
}

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """Where a parameter lies in a file: part `part` of `parts` equal parts of a first axis."""

    key: str
    part: int = 0
    parts: int = 1

    def shape(self, entries: Mapping[str, TensorEntry]) -> tuple[int, ...]:
        """The parameter's own shape."""
        first, *rest = entries[self.key].shape or (1,)
        return (first // self.parts, *rest) if self.parts > 1 else entries[self.key].shape


@dataclass(frozen=True)
class NamedKeys:
    """The keys of one file under canonical names.

    Attributes:
        sources: canonical name -> where it lies, in file order.
        tables: canonical name -> the table that gave it; others keep their own key.
        dead: key -> why the tensor has no meaning.
        dialects: table name -> dialect name.
        found: the tables that fit, backbone first.
    """

    sources: dict[str, Source]
    tables: dict[str, Table]
    dead: dict[str, str]
    dialects: dict[str, str]
    found: tuple[Table, ...]

    @property
    def family(self) -> str | None:
        """Name of the head's table, else of the backbone's: what the model is known as."""
        return self.found[-1].name if self.found else None


def name_keys(entries: Mapping[str, TensorEntry]) -> NamedKeys:
    """Apply the family tables to the keys of a file."""
    sources: dict[str, Source] = {}
    tables: dict[str, Table] = {}
    dead: dict[str, str] = {}
    dialects: dict[str, str] = {}
    found: list[Table] = []
    named_keys: set[str] = set()
    for table in TABLES:
        best = max(_readings(table, entries), key=lambda reading: len(reading[1]), default=None)
        if best is None:
            continue
        dialect, names, without_meaning = best
        dialects[table.name] = dialect.name
        found.append(table)
        dead |= without_meaning
        for name, source in names.items():
            if name not in sources and source.key not in dead:
                sources[name], tables[name] = source, table
                named_keys.add(source.key)
    for key in entries:
        if key not in named_keys and key not in dead and key not in sources:
            sources[key] = Source(key)
    place = {key: i for i, key in enumerate(entries)}
    ordered = sorted(sources.items(), key=lambda item: (place[item[1].key], item[1].part))
    return NamedKeys(dict(ordered), tables, dead, dialects, tuple(found))


def _readings(
    table: Table, entries: Mapping[str, TensorEntry]
) -> list[tuple[Dialect, dict[str, Source], dict[str, str]]]:
    """Every way to read a file's keys by a table: the dialect, what it names, what is dead."""
    readings = []
    for dialect in table.dialects:
        for prefix in dialect.prefixes:
            if prefix + dialect.signature not in entries:
                continue
            names: dict[str, Source] = {}
            dead: dict[str, str] = {}
            for key, entry in entries.items():
                if not key.startswith(prefix):
                    continue
                rest = key[len(prefix) :]
                if why := dialect.why_dead(rest):
                    dead[key] = why
                    continue
                parts = dialect.names(rest)
                if len(parts) > 1 and (not entry.shape or entry.shape[0] % len(parts)):
                    continue
                for i, name in enumerate(parts):
                    if table.rank(_module(name)) is not None:
                        names.setdefault(name, Source(key, i, len(parts)))
            readings.append((dialect, names, dead))
    return readings


def _module(name: str) -> str:
    """The layer a parameter belongs to.

    >>> _module("stages.0.norm.weight"), _module("scale")
    ('stages.0.norm', '')
    """
    return name.rpartition(".")[0]


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that counts: block 2 before block 10.

    >>> sorted(["b.10.x", "b.2.x"], key=natural)
    ['b.2.x', 'b.10.x']
    """
    return tuple(
        (0, int(piece), "") if piece.isdigit() and piece.isascii() else (1, 0, piece)
        for piece in re.split(r"(\d{1,9})", text)
        if piece
    )


@dataclass(frozen=True)
class DepthOrder:
    """The order of an architecture that no table knows.

    Attributes:
        source: where it comes from, in words.
        ranks: key of the anchor's file -> rank of its module; keys not in it come last.
        backbone: keys of the backbone; None if it is not known.
        backbone_name: what the backbone is called there.
    """

    source: str
    ranks: Mapping[str, int]
    backbone: frozenset[str] | None = None
    backbone_name: str | None = None


def registration_order(keys: Sequence[str]) -> DepthOrder:
    """The order in which a `.pth` file lists its modules: that of their creation."""
    ranks: dict[str, int] = {}
    for key in keys:
        ranks.setdefault(_module(key), len(ranks))
    return DepthOrder(
        "the file's own registration order", {key: ranks[_module(key)] for key in keys}
    )


def natural_order(keys: Sequence[str]) -> DepthOrder:
    """Numbers count, backbone first, head last: a guess for files that keep no order."""
    wrapper = _wrapper(keys)

    def place(module: str) -> tuple[int, tuple[tuple[int, int, str], ...]]:
        top = module[len(wrapper) :].split(".")[0]
        return (0 if top in BACKBONES else 2 if top in HEADS else 1, natural(module))

    modules = sorted({_module(key) for key in keys}, key=place)
    ranks = {module: i for i, module in enumerate(modules)}
    return DepthOrder("natural order of the names", {key: ranks[_module(key)] for key in keys})


@dataclass(frozen=True)
class Part:
    """A stretch of the model whose relatedness is judged on its own."""

    name: str
    backbone: bool


@dataclass(frozen=True)
class SharedParameter:
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


@dataclass(frozen=True)
class KeyMap:
    """What the models share.

    Attributes:
        shared: in depth order; float parameters only.
        parts: of the anchor, in depth order.
        layers: canonical names of the shared layers, in depth order.
        kept: per key of the anchor and part of it, why it is the anchor's own.
        unused: per donor, key -> why it is not used.
        families: per model, name of its family or None.
        dialects: per model, table -> dialect.
        order_source: where the depth order comes from.
        prefixes: per donor, the prefix that was taken off ("-") or put on ("+") its keys, or "".
        classifiers: per model, shape[0] of the known classifier, or None.
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


def match_keys(
    models: Sequence[Mapping[str, TensorEntry]],
    labels: Sequence[str],
    order: Callable[[], DepthOrder],
) -> KeyMap:
    """Match the parameters of donors with the anchor's, by canonical name and equal shape.

    Args:
        models: per model, key -> entry in file order; the anchor first.
        labels: per model, what to call it.
        order: gives the anchor's depth order; asked only where no table knows its backbone.

    Raises:
        UnrelatedModelsError: a donor shares no backbone parameter of at least two dimensions.
    """
    named = [name_keys(entries) for entries in models]
    tabled = any(table.backbone for table in named[0].found)
    named_donors, prefixes = [], []
    for i, donor in enumerate(named[1:], start=1):
        aligned, prefix = (donor, "") if tabled else _align(named[0], models[0], donor, models[i])
        named_donors.append(aligned)
        prefixes.append(prefix)
    named = [named[0], *named_donors]
    depth = _tabled_order(named[0]) if tabled else order()
    parts, part_of = _parts(named[0], depth, tabled)

    shared: list[SharedParameter] = []
    kept: dict[str, str] = dict(named[0].dead)
    part_of_key: dict[str, str] = {}
    for name, source in named[0].sources.items():
        part_of_key.setdefault(source.key, part_of(name, source.key))
        sources, why = _find(name, source, named, models, labels)
        if why:
            kept.setdefault(source.key, why)
        else:
            shape = source.shape(models[0])
            layer = _module(name)
            shared.append(SharedParameter(name, layer, part_of(name, source.key), shape, sources))
    rank = _ranker(named[0], depth)
    shared.sort(key=rank)
    merged_keys = {p.sources[0].key for p in shared if p.sources[0]}
    kept = {key: why for key, why in kept.items() if key not in merged_keys}
    unused = tuple(_unused(i, named, models, shared, labels) for i in range(1, len(models)))
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
    )


def require_shared_backbone(
    key_map: KeyMap, models: Sequence[Mapping[str, TensorEntry]], labels: Sequence[str]
) -> None:
    """Stop where headers alone prove that a donor shares no backbone.

    Raises:
        UnrelatedModelsError: with the closest near-misses and what would make them match.
    """
    backbone = {part.name for part in key_map.parts if part.backbone}
    for i in range(1, len(models)):
        matched = [p for p in key_map.shared if p.sources[i] is not None]
        if not any(p.part in backbone and len(p.shape) >= 2 for p in matched):
            raise UnrelatedModelsError(_nothing_shared(i, len(matched), key_map, models, labels))


def _nothing_shared(
    i: int,
    matched: int,
    key_map: KeyMap,
    models: Sequence[Mapping[str, TensorEntry]],
    labels: Sequence[str],
) -> str:
    """One line: that donor `i` shares no backbone, the nearest misses, and what to do."""
    families = [key_map.families[0], key_map.families[i]]
    shares = f"only {matched} parameters outside the backbone" if matched else "no parameter"
    text = f"{labels[0]} and {labels[i]} share {shares}: they have no common backbone"
    misses = [why for why in key_map.kept.values() if why.startswith("shape differs")]
    if misses and families[0] == families[1]:
        near = next(
            (f"{key}: {why}" for key, why in key_map.kept.items() if why in misses), misses[0]
        )
        return (
            f"{text}. {len(misses)} names match with other shapes ({near}): the models have "
            f"different sizes. Choose two models of the same size."
        )
    suffixes = _common_suffixes(models[0], models[i])
    if suffixes:
        mine, theirs = suffixes[0]
        return (
            f"{text}. {len(suffixes)} tensors end alike with equal shapes, e.g. {mine!r} and "
            f"{theirs!r}, but no prefix makes them match: rename the keys of one file so that "
            "they agree, or choose models with the same backbone."
        )
    return f"{text} ({families[0] or 'unknown family'}, {families[1] or 'unknown family'}). " + (
        "Choose models built on the same backbone."
    )


def _common_suffixes(
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


def _align(
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


def _tabled_order(named: NamedKeys) -> DepthOrder:
    names = " and ".join(f"{t.name} {'backbone' if t.backbone else 'head'}" for t in named.found)
    rest = [s.key for name, s in named.sources.items() if name not in named.tables]
    # Alphabetical files keep no order of their own: numbers count there.
    ranks = natural_order(rest).ranks
    return DepthOrder(f"the table of the {names}", ranks)


def _ranker(named: NamedKeys, depth: DepthOrder) -> Callable[[SharedParameter], tuple[object, ...]]:
    """Sort key of a parameter: backbone table, head table, then the rest."""
    last = len(named.sources)

    def rank(parameter: SharedParameter) -> tuple[object, ...]:
        table = named.tables.get(parameter.name)
        source = parameter.sources[0]
        assert source is not None
        if table is None:
            return (2, depth.ranks.get(source.key, last), parameter.layer)
        return (0 if table.backbone else 1, *(table.rank(parameter.layer) or ()))

    return rank


def _parts(
    named: NamedKeys, depth: DepthOrder, tabled: bool
) -> tuple[list[Part], Callable[[str, str], str]]:
    """The parts of the anchor in depth order, and the part of each (name, key)."""
    if tabled:

        def by_table(name: str, _key: str) -> str:
            table = named.tables.get(name)
            return "backbone" if table is not None and table.backbone else "head"

        return [Part("backbone", True), Part("head", False)], by_table
    if depth.backbone is not None:
        backbone = depth.backbone
        what = depth.backbone_name or "backbone"

        def by_class(_name: str, key: str) -> str:
            return what if key in backbone else "head"

        return [Part(what, True), Part("head", False)], by_class
    ordered = sorted(named.sources.values(), key=lambda s: depth.ranks.get(s.key, 0))
    wrapper = _wrapper([s.key for s in ordered])

    def top(key: str) -> str:
        return wrapper + _top(key[len(wrapper) :])

    tops = list(dict.fromkeys(top(s.key) for s in ordered))
    plain = {name: name[len(wrapper) :] for name in tops}
    known = {name for name in tops if plain[name] in BACKBONES}
    backbones = known or {name for name in tops if plain[name] not in HEADS} or set(tops)

    def by_top(_name: str, key: str) -> str:
        return top(key)

    return [Part(name, name in backbones) for name in tops], by_top


def _top(key: str) -> str:
    return key.split(".")[0] if "." in key else "(top level)"


def _wrapper(keys: Sequence[str]) -> str:
    """What all keys begin with and says nothing of the model's parts, up to a dot.

    >>> _wrapper(["net.encoder.0.weight", "net.head.bias"]), _wrapper(["encoder.0.weight"])
    ('net.', '')
    """
    wrapper = ""
    while True:
        rests = [key[len(wrapper) :] for key in keys]
        top = rests[0].partition(".")[0] if rests else ""
        shared = all(rest.startswith(f"{top}.") for rest in rests)
        nested = any(rest.count(".") > 1 for rest in rests)
        if top in (*BACKBONES, *HEADS, "") or not shared or not nested:
            return wrapper
        wrapper += f"{top}."


def _find(
    name: str,
    source: Source,
    named: Sequence[NamedKeys],
    models: Sequence[Mapping[str, TensorEntry]],
    labels: Sequence[str],
) -> tuple[tuple[Source | None, ...], str]:
    """Where the parameter lies in each model, or why the anchor keeps it."""
    entry = models[0][source.key]
    if entry.dtype not in MERGEABLE:
        return (), f"{dtype_name(entry.dtype)} is never averaged"
    if why := NEVER_AVERAGED.get(name.rpartition(".")[2]):
        return (), why
    shape = source.shape(models[0])
    sources: list[Source | None] = [source]
    reasons = []
    for keys, entries, label in zip(named[1:], models[1:], labels[1:], strict=True):
        theirs = keys.sources.get(name)
        if theirs is None:
            sources.append(None)
            reasons.append(f"absent in {label}")
        elif (other := theirs.shape(entries)) != shape:
            sources.append(None)
            reasons.append(f"shape differs: {shape} vs {other}" + _in(label, len(models)))
        elif entries[theirs.key].dtype not in MERGEABLE:
            sources.append(None)
            reasons.append(f"{dtype_name(entries[theirs.key].dtype)} in {label}")
        else:
            sources.append(theirs)
    if all(s is None for s in sources[1:]):
        return (), "; ".join(dict.fromkeys(reasons))
    return tuple(sources), ""


def _in(label: str, models: int) -> str:
    return f" in {label}" if models > 2 else ""


def _unused(
    i: int,
    named: Sequence[NamedKeys],
    models: Sequence[Mapping[str, TensorEntry]],
    shared: Sequence[SharedParameter],
    labels: Sequence[str],
) -> dict[str, str]:
    """Why each key of donor `i` that is no source of anything is left out."""
    used = {p.sources[i].key for p in shared if p.sources[i]}  # type: ignore[union-attr]
    unused = dict(named[i].dead)
    for name, source in named[i].sources.items():
        if source.key in used:
            continue
        mine = named[0].sources.get(name)
        entry = models[i][source.key]
        if mine is None:
            why = f"absent in {labels[0]}"
        elif entry.dtype not in MERGEABLE or (dtype := models[0][mine.key].dtype) not in MERGEABLE:
            other = entry.dtype if entry.dtype not in MERGEABLE else dtype
            why = f"{dtype_name(other)} is never averaged"
        elif name.rpartition(".")[2] in NEVER_AVERAGED:
            why = NEVER_AVERAGED[name.rpartition(".")[2]]
        else:
            why = f"shape differs: {mine.shape(models[0])} vs {source.shape(models[i])}"
        unused.setdefault(source.key, why)
    for key in models[i]:
        if key not in used:
            unused.setdefault(key, f"absent in {labels[0]}")
    return {key: unused[key] for key in models[i] if key in unused}


def _classifier_size(named: NamedKeys, entries: Mapping[str, TensorEntry]) -> int | None:
    for table in named.found:
        if table.classifier and (source := named.sources.get(table.classifier)):
            return entries[source.key].shape[0]
    return None
