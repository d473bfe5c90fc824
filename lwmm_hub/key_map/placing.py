"""Where a model that tables know has what no table names: by its trace, its file, or its shapes.

Behind the tables, as a head, unless something better is known. A trace says it all. The order of
registration says little (DETR registers its transformer before its backbone, mmseg a classifier
before its head), so it is believed for two things: what stands among the layers of one backbone,
and what follows a convolution that reads images and leads to the backbone. Such a convolution is
known by its three input channels, in files of every format.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.families import TABLES, Table
from lwmm_hub.key_map.naming import NamedKeys, module_of
from lwmm_hub.key_map.ordering import BACKBONES, DepthOrder, is_auxiliary, is_headlike

COLOURS = 3

# What else than `BACKBONES` and the names of tables a backbone is called by what holds it.
CONTAINERS = ("body", "extractor", "pretrained")

Rank = tuple[float | str, ...]

_BEFORE, _BACKBONE, _HEAD, _REST = -1, 0, 1, 2


@dataclass(frozen=True)
class Placing:
    """The places of the anchor's keys that no table names.

    Attributes:
        tabled: the places of what tables name.
        ranks: key -> sort key, comparable with those of `tabled`.
        backbone: those of them that belong to the backbone.
        notes: what was done with them, for the source of the order.
    """

    tabled: TablePlaces
    ranks: Mapping[str, Rank]
    backbone: frozenset[str]
    notes: tuple[str, ...]


class TablePlaces:
    """The places of modules that tables name: backbone tables first, each in its own order."""

    def __init__(self, named: NamedKeys) -> None:
        modules: dict[str, set[str]] = {table.name: set() for table in named.found}
        for name, table in named.tables.items():
            modules[table.name].add(module_of(name))
        for table, module, _ in named.twins.values():
            modules[table.name].add(module)
        self._places: dict[str, tuple[int, int, dict[str, tuple[int, ...]]]] = {
            table.name: (
                _BACKBONE if table.backbone else _HEAD,
                index,
                table.ranks(modules[table.name]),
            )
            for index, table in enumerate(named.found)
        }

    def rank(self, table: Table, module: str) -> Rank:
        """The sort key of a module that a table names."""
        group, index, places = self._places[table.name]
        return (group, index, *places.get(module, ()))


def place_rest(
    named: NamedKeys,
    entries: Mapping[str, TensorEntry],
    depth: DepthOrder,
    shared: Collection[str],
) -> Placing:
    """Place what no table names among what tables name.

    Args:
        named: of a model whose backbone a table knows.
        entries: the file's.
        depth: the order of what no table names, or of all.
        shared: the names that are merged, of which alone is told what was done with them.
    """
    tabled = TablePlaces(named)
    found = _Found(named, entries, depth, tabled)
    ranks: dict[str, Rank] = {}
    backbone: set[str] = set()
    notes: dict[str, None] = {}
    last = len(entries)
    for name, source in named.sources.items():
        if name in named.tables:
            continue
        key = source.key
        where = (depth.ranks.get(key, last), module_of(name))
        place, note = found.place(key)
        ranks[key] = (*place, *where)
        if place[0] in (_BEFORE, _BACKBONE):
            backbone.add(key)
        if note and name in shared:
            notes[note] = None
    return Placing(tabled, ranks, frozenset(backbone), tuple(notes))


class _Found:
    """What is known of a file's keys beside the tables."""

    def __init__(
        self,
        named: NamedKeys,
        entries: Mapping[str, TensorEntry],
        depth: DepthOrder,
        places: TablePlaces,
    ) -> None:
        self._named, self._entries, self._depth = named, entries, depth
        self._places = places
        sources = named.sources.items()
        self._tabled = {source.key: name for name, source in sources if name in named.tables}
        self._around = {
            key[: i + 1] for key in self._tabled for i, letter in enumerate(key) if letter == "."
        }
        self._containers = tuple(filter(_is_container, _prefixes_of_backbones(named)))
        reading = {self._branch(key) for key in entries if self._reads_images(key)}
        self._reading = {branch for branch in reading if not is_headlike(branch)}
        self._marks = self._in_order()
        self._layers = [mark for mark in self._marks if mark[1][0] == _BACKBONE]
        self._leading = self._between_images_and_backbone()

    def place(self, key: str) -> tuple[Rank, str]:
        """The first numbers of a key's sort key, and what to say of it."""
        if key in self._named.twins:
            table, module, number = self._named.twins[key]
            note = "other backbones of a table beside it"
            return (*self._places.rank(table, module), number), note
        if self._depth.origin == "trace" and key in self._depth.ranks:
            return self._traced(key), ""
        branch = self._branch(key)
        if is_auxiliary(key):
            return (_HEAD, -1), ""
        if is_headlike(branch):
            return (_REST,), ""
        if branch in self._reading or key in self._leading:
            return (_BEFORE,), "what reads images before the backbone"
        if self._depth.origin == "registration" and (mark := self._among(key)):
            return (*mark, math.inf), "what stands among the backbone's layers there"
        if key.startswith(self._containers):
            return (_BACKBONE, math.inf), "what else lies in the backbone at its end"
        return (_REST,), ""

    def _traced(self, key: str) -> Rank:
        """Behind what a table names and ran before it.

        Of the backbone is what runs among its layers, or lies in its container; but not what the
        class has beside its backbone. What the class calls so may hold decoders.
        """
        at = bisect.bisect_left(self._marks, (self._depth.ranks[key],)) - 1
        mark: Rank = self._marks[at][1] if at >= 0 else (_BEFORE,)
        if mark[0] == _HEAD:
            return (*mark, math.inf)
        inside = self._depth.backbone
        among = mark != self._layers[-1][1] if self._layers else False
        if key.startswith(self._containers) or (among and (inside is None or key in inside)):
            return (*mark, math.inf)
        return (_HEAD, -1)

    def _in_order(self) -> list[tuple[int, Rank]]:
        """(place in `depth`, sort key) of every key that a table names, by place."""
        ranks = self._depth.ranks
        tables = self._named.tables
        return sorted(
            (ranks[key], self._places.rank(tables[name], module_of(name)))
            for key, name in self._tabled.items()
            if key in ranks
        )

    def _among(self, key: str) -> Rank | None:
        """The sort key of the layer before a key, where both neighbours are of one backbone."""
        rank = self._depth.ranks.get(key)
        if rank is None:
            return None
        at = bisect.bisect_left(self._layers, (rank,))
        if not 0 < at < len(self._layers):
            return None
        before, after = self._layers[at - 1][1], self._layers[at][1]
        return before if before[1] == after[1] else None

    def _between_images_and_backbone(self) -> frozenset[str]:
        """What a file registers behind what reads images and before its backbone."""
        ranks = self._depth.ranks
        if self._depth.origin != "registration" or not self._layers:
            return frozenset()
        end = self._layers[0][0]
        before = {key: ranks[key] for key in self._entries if ranks.get(key, end) < end}
        starts = [rank for key, rank in before.items() if self._branch(key) in self._reading]
        return frozenset(key for key, rank in before.items() if rank >= min(starts, default=end))

    def _branch(self, key: str) -> str:
        """The largest container of a key, up to a dot, that holds nothing that a table names."""
        end = key.find(".")
        while end >= 0:
            if key[: end + 1] not in self._around:
                return key[: end + 1]
            end = key.find(".", end + 1)
        return key

    def _reads_images(self, key: str) -> bool:
        """Whether a tensor is a convolution of as many channels as an image has colours."""
        shape = self._entries[key].shape
        if key in self._tabled or len(shape) != 4 or shape[1] != COLOURS:
            return False
        bias = self._entries.get(key.removesuffix("weight") + "bias")
        transposed = bias is not None and bias.shape == shape[1:2] != shape[:1]
        return key.endswith("weight") and not transposed


def _is_container(prefix: str) -> bool:
    """Whether what stands before a backbone's keys is called like one, and no wrapper of a model.

    >>> _is_container("net.backbone."), _is_container("cp.resnet."), _is_container("net.")
    (True, True, False)
    """
    name = prefix[:-1].rpartition(".")[2]
    return name in (*BACKBONES, *CONTAINERS) or any(
        table.name.partition("_")[0] in name for table in TABLES if table.backbone
    )


def _prefixes_of_backbones(named: NamedKeys) -> list[str]:
    return [
        prefix
        for table in named.found
        if table.backbone
        for prefix in named.places.get(table.name, ())
    ]


def ranker(
    named: NamedKeys, depth: DepthOrder, placing: Placing | None
) -> Callable[[str, str], Rank]:
    """Sort key of (canonical name, key): tables in their order, and the rest as it was placed.

    A head's table alone says nothing of a model: where the backbone has none (`placing` is None),
    all follow `depth`.
    """
    last = len(named.sources)

    def rank(name: str, key: str) -> Rank:
        if placing is None:
            return (_REST, depth.ranks.get(key, last), module_of(name))
        table = named.tables.get(name)
        if table is None:
            return placing.ranks[key]
        return placing.tabled.rank(table, module_of(name))

    return rank
