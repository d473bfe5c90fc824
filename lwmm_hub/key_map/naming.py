"""The keys of one file under canonical names: the family tables applied."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.families import TABLES, Dialect, Table

# copies of a network that are not its student: taken only where nothing else matches as well
OTHER_COPIES = ("ema", "teacher", "imnet", "momentum", "target")
# MoCo's encoder of keys follows that of queries as a moving average
MOVING_AVERAGES = ("encoder_k", "backbone_k", "model_k", "encoder_key", "key_encoder")

_WHOLE = 0.9  # the share of a copy's tensors that makes a student whole
_SOME = 0.05  # the share that shows that there is one; a head may have a norm of the same name

MAX_WRAPPERS = 16  # looked below for a network; a file made to be slow has thousands


class Source(NamedTuple):
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
        conventions: table name -> its dialect and what the names do not show of its networks.
        places: table name -> the prefix its keys were found under, then those of equally complete
            networks in the same file, which keep their own keys.
        copies: table name -> the prefix of a copy that is taken though a student, which lacks much
            of it, is there.
        twins: key of another backbone of the table, such as a second stream or a teacher, beside
            the one that is named -> the table, the canonical module it would be, and a number of
            that network.
    """

    sources: dict[str, Source]
    tables: dict[str, Table]
    dead: dict[str, str]
    dialects: dict[str, str]
    found: tuple[Table, ...]
    conventions: dict[str, tuple[str, str]] = field(default_factory=dict)
    places: dict[str, tuple[str, ...]] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    twins: dict[str, tuple[Table, str, int]] = field(default_factory=dict)

    def find(self, name: str, other: NamedKeys) -> Source | None:
        """Where the parameter lies that `other` calls `name`; None unless one table named both."""
        same = self.tables.get(name) is other.tables.get(name)
        return self.sources.get(name) if same else None

    @property
    def family(self) -> str | None:
        """Name of the head's table, else of the backbone's: what the model is known as."""
        return self.found[-1].name if self.found else None


def name_keys(
    entries: Mapping[str, TensorEntry],
    prefer: Collection[tuple[str, str]] = (),
    heads: Collection[Table] = (),
) -> NamedKeys:
    """Apply the family tables to the keys of a file.

    Args:
        entries: the file's.
        prefer: (table, prefix) of the network to take where a file holds several alike.
        heads: tables of heads that are looked for below any wrapper, not only the backbone's.
    """
    sources: dict[str, Source] = {}
    tables: dict[str, Table] = {}
    dead: dict[str, str] = {}
    dialects: dict[str, str] = {}
    conventions: dict[str, tuple[str, str]] = {}
    places: dict[str, tuple[str, ...]] = {}
    copies: dict[str, str] = {}
    twins: dict[str, tuple[Table, str, int]] = {}
    found: list[Table] = []
    named_keys: set[str] = set()
    tails = _Tails(entries)
    wrappers: list[str] = []
    for table in TABLES:
        anywhere = table.backbone or table in heads
        readings = _readings(table, entries, tails, wrappers, anywhere)
        if not readings:
            continue
        best = _best(readings, {prefix for name, prefix in prefer if name == table.name})
        alike = [
            r for r in readings if (len(r.names), r.is_copy) == (len(best.names), best.is_copy)
        ]
        places[table.name] = tuple(dict.fromkeys((best.prefix, *(r.prefix for r in alike))))
        if best.is_copy and (
            any(r.names and not r.is_copy for r in readings) or _has_student(best, entries)
        ):
            copies[table.name] = best.prefix
        if table.backbone:
            wrappers += [place for place in _around(best.prefix) if place not in wrappers]
            twins |= _twins(table, best, readings)
        dialect, names = best.dialect, best.names
        dialects[table.name] = dialect.name
        if dialect.convention:
            conventions[table.name] = (dialect.name, dialect.convention)
        found.append(table)
        dead |= best.dead
        taken = frozenset(named_keys)  # by tables before, such as a deep stem's last norm
        for name, source in names.items():
            if name not in sources and source.key not in dead and source.key not in taken:
                sources[name], tables[name] = source, table
                named_keys.add(source.key)
    for key in entries:
        if key not in named_keys and key not in dead and key not in sources:
            sources[key] = Source(key)
    dead = {key: why for key, why in dead.items() if key not in named_keys}
    place = {key: i for i, key in enumerate(entries)}
    ordered = sorted(sources.items(), key=lambda item: (place[item[1].key], item[1].part))
    return NamedKeys(
        dict(ordered), tables, dead, dialects, tuple(found), conventions, places, copies, twins
    )


class _Reading(NamedTuple):
    """One way to read a file's keys by a table: what it names, and key -> why it is dead."""

    dialect: Dialect
    prefix: str
    names: dict[str, Source]
    dead: dict[str, str]

    @property
    def is_copy(self) -> bool:
        """Whether it is a copy that is not the student."""
        return is_other_copy(self.prefix)


def _best(readings: Sequence[_Reading], prefer: Collection[str]) -> _Reading:
    """The most complete network; a student wins over its copies even if it lacks a little."""
    whole = max(len(r.names) for r in readings)
    students = [r for r in readings if not r.is_copy and len(r.names) >= _WHOLE * whole]
    return max(students or readings, key=lambda r: (len(r.names), r.prefix in prefer))


def _twins(
    table: Table, best: _Reading, readings: Sequence[_Reading]
) -> dict[str, tuple[Table, str, int]]:
    """What the keys of the networks beside the best would be, had one of them been taken."""
    others = sorted({reading.prefix for reading in readings} - {best.prefix})
    return {
        source.key: (table, module_of(name), 1 + others.index(reading.prefix))
        for reading in readings
        if reading.prefix != best.prefix
        for name, source in reading.names.items()
    }


def _has_student(copy: _Reading, entries: Mapping[str, TensorEntry]) -> bool:
    """Whether something of a copy's student lies in the file, though not the table's signature."""
    start = len(copy.prefix)
    shapes = {s.key[start:]: entries[s.key].shape for s in copy.names.values()}
    most = max((rest.count(".") for rest in shapes), default=0) + 1
    found: Counter[str] = Counter()
    for key, entry in entries.items():
        pieces = key.rsplit(".", most)  # what stands before the copy's longest keys is not cut
        for i in range(len(pieces)):
            rest = ".".join(pieces[i:])
            if shapes.get(rest) == entry.shape:
                found[key.removesuffix(rest)] += 1
    return any(n >= _SOME * len(shapes) and not is_other_copy(p) for p, n in found.items())


def _readings(
    table: Table,
    entries: Mapping[str, TensorEntry],
    tails: _Tails,
    wrappers: Sequence[str],
    anywhere: bool,
) -> list[_Reading]:
    """Every way to read a file's keys by a table."""
    readings = []
    for dialect in table.dialects:
        for prefix in _prefixes(table, dialect, entries, tails, wrappers, anywhere):
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
                    if table.rank(module_of(name)) is not None:
                        names.setdefault(name, Source(key, i, len(parts)))
            readings.append(_Reading(dialect, prefix, names, dead))
    return readings


class _Tails:
    """The keys of a file by their last two names: which of them end like a signature."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys: dict[str, list[str]] = {}
        for key in keys:
            self._keys.setdefault(_tail(key), []).append(key)

    def before(self, signature: str) -> list[str]:
        """What stands before the signature in keys that end with it, up to a dot; in file order."""
        ending = f".{signature}"
        found = self._keys.get(_tail(signature), ())
        return [key[: -len(signature)] for key in found if key.endswith(ending)]


def _tail(key: str) -> str:
    return key[key.rfind(".", 0, key.rfind(".")) + 1 :]


def _prefixes(
    table: Table,
    dialect: Dialect,
    entries: Mapping[str, TensorEntry],
    tails: _Tails,
    wrappers: Sequence[str],
    anywhere: bool,
) -> list[str]:
    """What stands before a dialect's keys in a file: as its table says, else whatever does.

    A backbone is recognised below any wrapper, and a head below those of the backbone, the nearest
    first; `anywhere` looks for a head below others, too, but for those of copies that are not the
    student. Copies of a backbone come last, and the order of the file says nothing.
    """
    for wrapper in ("",) if table.backbone else ("", *wrappers):
        listed = [wrapper + prefix for prefix in dialect.prefixes]
        if found := [p for p in listed if _stands(dialect, p, entries)]:
            return found
    if not anywhere:
        return []
    found = [p for p in tails.before(dialect.signature) if _stands(dialect, p, entries)]
    if not table.backbone:
        found = [p for p in found if _wrapper(dialect, p) is not None and not is_other_copy(p)]
    return sorted(found, key=lambda prefix: (is_other_copy(prefix), prefix))[:MAX_WRAPPERS]


def _stands(dialect: Dialect, prefix: str, entries: Mapping[str, TensorEntry]) -> bool:
    """Whether a dialect stands below a prefix, with all that it needs beside it."""
    wrapper = _wrapper(dialect, prefix) or ""
    return dialect.stands(prefix, entries) and all(
        wrapper + key in entries for key in dialect.needs
    )


def _wrapper(dialect: Dialect, prefix: str) -> str | None:
    """What stands before a prefix that the dialect lists; None if it is none of them.

    The longest that fits is taken: `net.backbone.` is `backbone.` in `net.`.
    """
    for listed in sorted(dialect.prefixes, key=len, reverse=True):
        wrapper = prefix.removesuffix(listed)
        if prefix.endswith(listed) and (not wrapper or wrapper.endswith(".")):
            return wrapper
    return None


def _around(prefix: str) -> list[str]:
    """The wrappers that a network below `prefix` lies in, the nearest first.

    >>> _around("net.model.backbone.")
    ['net.model.backbone.', 'net.model.', 'net.']
    """
    names = prefix.split(".")[:-1]
    return [".".join(names[:n]) + "." for n in range(len(names), 0, -1)][:MAX_WRAPPERS]


def is_other_copy(prefix: str) -> bool:
    """Whether what stands before a network's keys says that it is not the student.

    >>> is_other_copy("module.model_ema."), is_other_copy("module.schema.")
    (True, False)
    >>> is_other_copy("module.encoder_k."), is_other_copy("module.encoder_q.")
    (True, False)
    """
    if any(name in MOVING_AVERAGES for name in prefix.split(".")):
        return True
    return any(piece.startswith(OTHER_COPIES) for piece in re.split(r"[._]", prefix))


def module_of(name: str) -> str:
    """The layer a parameter belongs to.

    >>> module_of("stages.0.norm.weight"), module_of("scale")
    ('stages.0.norm', '')
    """
    return name.rpartition(".")[0]
