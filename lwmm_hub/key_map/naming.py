"""The keys of one file under canonical names: the family tables applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.families import TABLES, Dialect, Table


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
                    if table.rank(module_of(name)) is not None:
                        names.setdefault(name, Source(key, i, len(parts)))
            readings.append((dialect, names, dead))
    return readings


def module_of(name: str) -> str:
    """The layer a parameter belongs to.

    >>> module_of("stages.0.norm.weight"), module_of("scale")
    ('stages.0.norm', '')
    """
    return name.rpartition(".")[0]
