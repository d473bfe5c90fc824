"""Where the weights lie among what else a training run saved, for every pickled format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lwmm_hub.checkpoint.copies import (
    AVERAGE_RANKS,
    WRAPPERS,
    counters,
    holds_copy,
    is_optimizer,
    is_record,
    strip_prefix,
    swapped,
)
from lwmm_hub.checkpoint.entries import TensorEntry
from lwmm_hub.checkpoint.layout import shown_key, step
from lwmm_hub.checkpoint.rebuilding import Opaque
from lwmm_hub.checkpoint.zip_archive import shown
from lwmm_hub.errors import CheckpointError

MAX_SHOWN = 200  # characters of a path that is only told
MAX_AVERAGES = 16  # of one file; more are told from each other by nobody


@dataclass(frozen=True)
class StateDict:
    """The weights of one model within a file.

    The original key of `entries[key]` is `prefix + key`, at `path` in the tree. Where the model is
    saved in `parts` (keys at `path`), a key is `part/key` and was `prefix + key` within its part.
    `unused` says what else holds tensors, or is no tensor, one line each. `copy` is the copy that
    was taken, `student` or `ema`; `others` are those in dictionaries of their own that may be asked
    for instead of a student. `warnings` say what was chosen where another may have been meant. A
    student whose place an average has taken has the `path` of that place.
    """

    path: tuple[str, ...]
    prefix: str
    entries: dict[str, TensorEntry]
    parts: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    copy: str = "student"
    others: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def find_state_dicts(tree: object, name: str, copy: str = "student") -> StateDict:
    """The weights in a tree: the first of `WRAPPERS` that it has, else the tree itself.

    What the wrapper holds is looked at in the same way (`{"model": {"state_dict": ...}}`). Where no
    wrapper is known, the only dictionary with tensors is taken; if there are several, none is.
    Optimizer state is never taken. Everything with tensors that is not taken is listed in `unused`.

    Args:
        tree: `PickledFile.tree`.
        name: what to call the file in a message.
        copy: the copy that is wanted; `ema` is an average, wherever it lies, and where there is
            none in a dictionary of its own the same as `student`, which is an average only where
            nothing else may be the network.

    Raises:
        CheckpointError: no state dict, several of equal rank, or keys that are not text.
    """
    search = _Search(tree, name)
    averages = search.averages()
    if copy == "ema" and averages:
        place, warnings = search.average(averages)
        return search.state_dict(place, "ema", (), warnings)
    others = ("ema",) if averages else ()
    place = search.walk()
    if not place.average:
        return search.state_dict(place, "student", others, place.warnings)
    rivals = search.rivals(place, averages)
    if rivals == [place.average[:-1]]:  # the average is an item of the student's own dictionary
        return search.state_dict(_Place(rivals[0]), "student", others, ())
    average = shown("/".join(place.average))
    if rivals:
        raise CheckpointError(
            f"{name} holds an average of weights, {average}, and may hold the network itself as "
            f"{', '.join(map(_where, rivals[:8]))}. Write '?weights=ema' behind the model's name "
            "to take the average, or save the one to merge in a file of its own with torch.save."
        )
    warning = (
        f"{name} has no student under a name that is known, only its average {average} "
        "(?weights=ema): that is taken."
    )
    return search.state_dict(place, "ema", (), (*place.warnings, warning))


class _Count(NamedTuple):
    """How many tensors a dictionary holds, and how many of them are more than one number."""

    tensors: int
    arrays: int


@dataclass(frozen=True)
class _Place:
    """Where a state dict lies: in one dictionary, or in several as parts of one model.

    `average` is the path to the average that it lies in; `home` where its readers look for it, if
    that is not its path.
    """

    path: tuple[str, ...]
    parts: tuple[str, ...] = ()
    average: tuple[str, ...] = ()
    home: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()


class _Search:
    """One look for weights in a tree; each dictionary is counted once, however it is reached."""

    def __init__(self, tree: object, name: str) -> None:
        self.tree = tree
        self.name = name
        self.counted: dict[int, _Count] = {}

    def walk(self, path: tuple[str, ...] = ()) -> _Place:
        """Down from `path` to the weights, by names that are known and where there is no choice.

        Raises:
            CheckpointError: there is a choice.
        """
        home: tuple[str, ...] | None = None
        average, warnings = tuple[str, ...](), tuple[str, ...]()
        while True:
            here = _below(self.tree, path)
            found: tuple[str, ...] | None = None
            if isinstance(here, dict) and (swap := swapped(here)) and self.count(here[swap[1]]):
                warnings += (
                    f"{self.name} keeps the average of the weights as {swap[0]!r} and the student "
                    f"as {swap[1]!r}, as {swap[2]} does: the student is taken. Write "
                    "'?weights=ema' behind the model's name to take the average.",
                )
                found, home = (swap[1],), (*path, swap[0])
            found = found or self.first_wrapper(here) or self.only_child(here)
            if found is None:
                return _Place(path, (), average, home, warnings)
            if len(found) > 1:
                return _Place(path, found, average, home, warnings)
            path += found
            if found[0] in AVERAGE_RANKS and home is None:
                average = average or path

    def count(self, value: object) -> _Count | None:
        """What a dictionary and those below it hold, without optimizer state; None for no tensor.

        None too where each is a single number: such is a table of counters, no network.
        """
        count = self._count(value)
        return count if count.arrays else None

    def _count(self, value: object) -> _Count:
        if isinstance(value, Opaque):  # a choice as any other, so that nothing else is taken for it
            return _Count(value.tensors, value.tensors)
        if not isinstance(value, dict):
            return _Count(0, 0)
        if id(value) not in self.counted:
            tensors = [item for item in value.values() if isinstance(item, TensorEntry)]
            counts = [_Count(len(tensors), sum(bool(item.shape) for item in tensors))]
            counts += [
                self._count(item)
                for key, item in value.items()
                if isinstance(item, dict | Opaque) and not is_optimizer(key, item)
            ]
            self.counted[id(value)] = _Count(*map(sum, zip(*counts, strict=True)))
        return self.counted[id(value)]

    def first_wrapper(self, value: object) -> tuple[str, ...] | None:
        """The first row whose keys all hold tensors, and at least as many as lie beside them."""
        if not isinstance(value, dict):
            return None
        beside = _direct_count(value)
        for row in WRAPPERS:
            counts = [self.count(value.get(key)) for key in row]
            if all(counts) and sum(count.tensors for count in counts if count) >= beside:
                return row
        return None

    def only_child(self, value: object) -> tuple[str, ...] | None:
        """The one key whose dictionary holds tensors, if no tensor lies beside it.

        Raises:
            CheckpointError: there are several.
        """
        if not isinstance(value, dict) or _direct_count(value):
            return None
        children = [
            key
            for key, item in value.items()
            if isinstance(key, str) and not is_optimizer(key, item) and self._count(item).tensors
        ]
        networks = [key for key in children if self.count(value[key]) and not is_record(key)]
        children = networks or children
        if len(children) > 1:
            raise CheckpointError(
                f"{self.name} holds several dictionaries of tensors "
                f"({', '.join(map(shown, children[:8]))}) and none under a known name such as "
                "'state_dict'. Save the one to merge in a file of its own with torch.save."
            )
        return (children[0],) if children else None

    def averages(self) -> list[tuple[str, ...]]:
        """The outermost dictionaries under names of averages, most wanted first."""
        found = list(self._averages(self.tree, ()))
        return sorted(found, key=lambda path: (AVERAGE_RANKS.get(path[-1], -1), len(path)))

    def _averages(self, value: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if not isinstance(value, dict):
            return
        average, student, _ = swapped(value) or ("", "", "")
        for key, item in value.items():
            if not isinstance(key, str) or key == student or not self.count(item):
                continue
            if key in AVERAGE_RANKS or key == average:
                yield (*path, key)
            elif not is_optimizer(key, item):
                yield from self._averages(item, (*path, key))

    def average(self, averages: Sequence[tuple[str, ...]]) -> tuple[_Place, tuple[str, ...]]:
        """The average that is meant, and what to say of the others.

        Raises:
            CheckpointError: they are of several networks.
        """
        several = len(averages) > 1
        if several and len(averages) <= MAX_AVERAGES and (student := self.student(averages)):
            own = [p for p in averages if holds_copy(self.tensors_below(p), student)]
            averages = own or averages
        taken = self.walk(averages[0])
        others = averages[1:]
        mine = self.tensors_below(averages[0])
        alike = (holds_copy(mine, self.tensors_below(path)) for path in others)
        if len(averages) > MAX_AVERAGES or not all(alike):
            raise CheckpointError(
                f"{self.name} holds averages of several networks: "
                f"{', '.join(map(_where, averages[:8]))}. Save the one to merge in a file of its "
                "own with torch.save."
            )
        if not others:
            return taken, ()
        names = ", ".join(map(_where, others[:8]))
        return taken, (
            f"{self.name} holds several averages of its weights: {_where(averages[0])} is taken, "
            f"not {names}.",
        )

    def student(self, averages: Sequence[tuple[str, ...]]) -> dict[str, TensorEntry] | None:
        """The student's tensors, where it is clear which they are."""
        try:
            place = self.walk()
            if place.average:
                rivals = self.rivals(place, averages)
                return self.tensors(_Place(rivals[0])) if len(rivals) == 1 else None
            return self.tensors(place)
        except CheckpointError:
            return None

    def tensors_below(self, path: tuple[str, ...]) -> dict[str, TensorEntry]:
        """The tensors that a walk from `path` leads to; none where it cannot be gone."""
        try:
            return self.tensors(self.walk(path))
        except CheckpointError:
            return {}

    def rivals(self, place: _Place, averages: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Where dictionaries lie, outside all averages, that the average may be one of."""
        average = self.tensors(place)
        return [
            path
            for path, tensors in _dicts_of_tensors(self.tree, frozenset(averages))
            if holds_copy(average, tensors)
        ]

    def tensors(self, place: _Place) -> dict[str, TensorEntry]:
        """The tensors at a place, those of all parts together."""
        return {key: e for part in self.taken(place).values() for key, e in part.items()}

    def taken(self, place: _Place) -> dict[str, dict[str, TensorEntry]]:
        """Part (or nothing) -> the tensors directly in it."""
        return {
            part: {
                key: item
                for key, item in (value.items() if isinstance(value, dict) else ())
                if isinstance(key, str) and isinstance(item, TensorEntry)
            }
            for part, value in self.dicts(place).items()
        }

    def dicts(self, place: _Place) -> dict[str, object]:
        """Part (or nothing) -> the dictionary that holds it."""
        here = _below(self.tree, place.path)
        if isinstance(here, dict) and place.parts:
            return {part: here[part] for part in place.parts}
        return {"": here}

    def state_dict(
        self, place: _Place, copy: str, others: tuple[str, ...], warnings: tuple[str, ...]
    ) -> StateDict:
        """The weights at a place, under keys without what wrappers put before them.

        Raises:
            CheckpointError: there are none, or they have keys that are not text.
        """
        dicts, taken = self.dicts(place), self.taken(place)
        notes = self.notes(dicts, "/".join(place.path))
        for part, value in dicts.items():
            if isinstance(value, Opaque) and value.tensors:
                where = _where((*place.path, *filter(None, (part,))))
                raise CheckpointError(
                    f"{self.name} holds its weights ({where}) in {shown(value.name)}, which is not "
                    "read. Load it with the code that wrote it and save a plain dictionary of "
                    "them: torch.save(dict(...), ...)."
                )
        if not any(taken.values()):
            raise CheckpointError(
                f"{self.name} holds no state dict (a dictionary of named tensors). Save one: "
                "torch.save(model.state_dict(), ...)."
            )
        for part, entries in taken.items():
            for key in counters(entries):
                del entries[key]
                notes.append(f"{_where((*place.path, *filter(None, (part, key))))}: a counter")
        prefix, stripped = strip_prefix([key for entries in taken.values() for key in entries])
        named = {
            f"{part}/{stripped[key]}" if part else stripped[key]: entry
            for part, entries in taken.items()
            for key, entry in entries.items()
        }
        entries = {key: replace(entry, key=key) for key, entry in named.items()}
        used = {(*place.path, part) if part else place.path for part in dicts}
        beside = [
            f"{_where(path)}: {len(tensors)} tensors"
            for path, tensors in _dicts_of_tensors(self.tree)
            if path not in used
        ]
        beside += [
            f"{_where(path)}: {carrier.tensors} tensors in {shown(carrier.name)}, not read"
            for path, carrier in _carriers_of_tensors(self.tree)
        ]
        path = place.home or place.path
        unused = (*beside, *notes)
        return StateDict(path, prefix, entries, place.parts, unused, copy, others, warnings)

    def notes(self, dicts: Mapping[str, object], where: str) -> list[str]:
        """A line for everything in the dictionaries that is not a tensor.

        Raises:
            CheckpointError: a tensor has a name that is not text.
        """
        notes = []
        where = where if len(where) <= MAX_SHOWN else f"{where[:MAX_SHOWN]}..."
        for part, value in dicts.items():
            for key, item in value.items() if isinstance(value, dict) else ():
                if isinstance(item, TensorEntry):
                    if isinstance(key, str):
                        continue
                    raise CheckpointError(
                        f"{self.name}: the tensor {shown_key(key)} in "
                        f"{shown(where or 'the file')} has a name that is not text. Save a state "
                        "dict: torch.save(model.state_dict(), ...)."
                    )
                if not self._count(item).tensors:
                    path = "/".join(filter(None, (where, part, step(key)[:MAX_SHOWN])))
                    notes.append(f"{shown(path)}: not a tensor")
        return notes


def _carriers_of_tensors(
    tree: object, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Opaque]]:
    """(path, instance) of everything that holds tensors and is not read, outside optimizers."""
    if isinstance(tree, Opaque) and tree.tensors:
        yield path, tree
    for key, item in tree.items() if isinstance(tree, dict) else ():
        if not is_optimizer(key, item):
            yield from _carriers_of_tensors(item, (*path, step(key)))


def _where(path: tuple[str, ...]) -> str:
    return shown("/".join(path)) if path else "top level"


def _below(tree: object, path: tuple[str, ...]) -> object:
    for key in path:
        tree = tree[key] if isinstance(tree, dict) else None
    return tree


def _direct_count(value: Mapping[object, object]) -> int:
    return sum(isinstance(item, TensorEntry) for item in value.values())


def _dicts_of_tensors(
    tree: object, without: frozenset[tuple[str, ...]] = frozenset(), path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, TensorEntry]]]:
    """(path, tensors directly in it) of every dictionary of tensors outside optimizer state."""
    if not isinstance(tree, dict) or path in without:
        return
    tensors = {step(k): item for k, item in tree.items() if isinstance(item, TensorEntry)}
    if tensors:
        yield path, tensors
    for key, item in tree.items():
        if isinstance(item, dict) and not is_optimizer(key, item):
            yield from _dicts_of_tensors(item, without, (*path, step(key)))
