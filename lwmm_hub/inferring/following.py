"""Tensors that follow their module: biases, norms and statistics say little by their values.

A module is followed where all that is known of it leads to one module of the donor. Norm layers
that own no matrix are found beside the modules that do: in the same container, or in the
same gap of two files that keep the order of registration. Of several that look alike their values
choose, among those few, and one alone must not resemble its neighbours more; what could be two
things is left unmatched, and so is a norm whose channels may stand in another order.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.checkpoint import MERGEABLE, Checkpoint, TensorEntry
from lwmm_hub.inferring.comparing import MARGIN, assign, centred_cosines, needed_cosine
from lwmm_hub.key_map import OpenKeys

_Shape = tuple[int, ...]
_Signature = tuple[tuple[str, _Shape], ...]

# what other frameworks call a parameter of a norm layer
COMMON_RENAMES = {
    "beta": "bias",
    "gamma": "weight",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
    "moving_variance": "running_var",
}


def module_and_leaf(key: str) -> tuple[str, str]:
    """The module of a key, and its last name as torch has it.

    >>> module_and_leaf("stem.norm.gamma")
    ('stem.norm', 'weight')
    """
    module, _, leaf = key.rpartition(".")
    return module, COMMON_RENAMES.get(leaf, leaf)


@dataclass(frozen=True)
class _Side:
    """One file: its modules in file order, and what of them is open."""

    checkpoint: Checkpoint
    modules: Mapping[str, tuple[str, ...]]  # module -> float keys
    open: Mapping[str, tuple[str, ...]]  # module -> open keys of fewer than two dimensions
    norms: frozenset[str]  # modules without a matrix, of which everything is open
    sorted: bool  # alphabetical: such a file keeps no order of its own
    order: tuple[str, ...]  # its modules
    place: Mapping[str, int]  # module -> where it stands in that order

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Key -> entry, in file order."""
        return self.checkpoint.entries

    def behind(self, module: str, known: Collection[str]) -> list[str]:
        """The open norms right behind a module, up to anything else."""
        at = self.place[module] + 1
        return self._norms((self.order[i] for i in range(at, len(self.order))), known)

    def before(self, module: str, known: Collection[str]) -> list[str]:
        """The open norms right before a module, back to anything else."""
        at = self.place[module] - 1
        return self._norms((self.order[i] for i in range(at, -1, -1)), known)

    def after(self, module: str, many: int) -> str | None:
        """The module that stands behind so `many` others."""
        at = self.place[module] + many + 1
        return self.order[at] if at < len(self.order) else None

    def _norms(self, modules: Iterable[str], known: Collection[str]) -> list[str]:
        return list(itertools.takewhile(lambda m: m in self.norms and m not in known, modules))

    def leaves(self, module: str) -> list[tuple[str, _Shape, str]]:
        """Last name, shape and key of a module's floats, by last name."""
        return sorted(
            (module_and_leaf(k)[1], self.entries[k].shape, k) for k in self.modules[module]
        )

    def signature(self, module: str) -> _Signature:
        """Last names and shapes of a module's floats."""
        return tuple((leaf, shape) for leaf, shape, _ in self.leaves(module))


def _side(checkpoint: Checkpoint, open_keys: Sequence[str]) -> _Side:
    entries = checkpoint.entries
    is_open = set(open_keys)
    modules: dict[str, list[str]] = {}
    for key, entry in entries.items():
        if entry.dtype in MERGEABLE:
            modules.setdefault(module_and_leaf(key)[0], []).append(key)
    small = {
        module: tuple(k for k in keys if k in is_open and len(entries[k].shape) < 2)
        for module, keys in modules.items()
    }
    floats = [key for keys in modules.values() for key in keys]
    return _Side(
        checkpoint,
        {module: tuple(keys) for module, keys in modules.items()},
        small,
        frozenset(module for module, keys in modules.items() if len(small[module]) == len(keys)),
        floats == sorted(floats),
        tuple(modules),
        {module: i for i, module in enumerate(modules)},
    )


def follow(
    open_keys: OpenKeys,
    anchor: Checkpoint,
    donor: Checkpoint,
    named: Iterable[tuple[str, str]],
    valued: Mapping[str, str],
) -> dict[str, tuple[str, str]]:
    """The anchor's open key -> the donor's, and the anchor's key that it follows.

    Args:
        open_keys: what names leave over.
        anchor: whose keys follow.
        donor: whose keys are followed.
        named: pairs of keys that names match.
        valued: pairs of keys that their values match.
    """
    mine, theirs = _side(anchor, open_keys.anchor), _side(donor, open_keys.donor)
    leaders: dict[str, str] = {}  # module -> the key whose values speak for it
    for key in valued:
        leaders.setdefault(module_and_leaf(key)[0], key)
    partners = _one_to_one(
        (module_and_leaf(a)[0], module_and_leaf(b)[0]) for a, b in (*named, *valued.items())
    )
    lone = [key for key in open_keys.anchor if key not in valued and _is_matrix(mine, key)]
    for rule in (_in_containers, _in_gaps):
        for module, (other, neighbours) in rule(mine, theirs, dict(partners)).items():
            if _beside_one_of(lone, mine, module):
                continue
            leader = next((leaders[near] for near in neighbours if near in leaders), None)
            if leader is not None and other not in partners.values():
                partners[module] = other
                leaders[module] = leader
    return {
        a: (b, leaders[module])
        for module, other in partners.items()
        if module in leaders
        for a, b in _leaves(mine, module, theirs, other)
    }


def _is_matrix(side: _Side, key: str) -> bool:
    return len(side.entries[key].shape) >= 2


def _beside_one_of(lone: Sequence[str], side: _Side, norm: str) -> bool:
    """Whether a matrix that found no partner, beside a norm layer, has its number of channels.

    The units between two matrices can stand in another order in the donor: no matrix matches then,
    and the norm between them, which looks the same in any order, must not.
    """
    container = _parent(norm)
    widths = {shape[0] for _, shape, _ in side.leaves(norm) if shape}
    return any(
        not widths.isdisjoint(side.entries[key].shape[:2])
        for key in lone
        if _parent(module_and_leaf(key)[0]) == container
    )


def _one_to_one(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The pairs whose left side meets one right side only, and the other way round."""
    unique = list(dict.fromkeys(pairs))
    left, right = Counter(a for a, _ in unique), Counter(b for _, b in unique)
    return {a: b for a, b in unique if left[a] == right[b] == 1}


def _leaves(mine: _Side, module: str, theirs: _Side, other: str) -> list[tuple[str, str]]:
    """The small tensors of two matched modules: by last name, else by a shape that is unique."""
    a = {module_and_leaf(key)[1]: key for key in mine.open.get(module, ())}
    b = {module_and_leaf(key)[1]: key for key in theirs.open.get(other, ())}
    shapes_a = {leaf: mine.entries[key].shape for leaf, key in a.items()}
    shapes_b = {leaf: theirs.entries[key].shape for leaf, key in b.items()}
    pairs = [(a[leaf], b[leaf]) for leaf in a if leaf in b and shapes_a[leaf] == shapes_b[leaf]]
    rest_a = {leaf: shape for leaf, shape in shapes_a.items() if leaf not in b and shape}
    rest_b = {leaf: shape for leaf, shape in shapes_b.items() if leaf not in a and shape}
    for leaf, shape in rest_a.items():
        same = [candidate for candidate, its in rest_b.items() if its == shape]
        if len(same) == 1 == list(rest_a.values()).count(shape):
            pairs.append((a[leaf], b[same[0]]))
    return pairs


def _in_containers(
    mine: _Side, theirs: _Side, known: Mapping[str, str]
) -> dict[str, tuple[str, list[str]]]:
    """Norm layers of containers that correspond: what is matched in one lies in the other."""
    containers = _one_to_one(
        pair for a, b in known.items() for pair in zip(_above(a), _above(b), strict=False)
    )
    near: dict[str, list[str]] = {}
    for module in known:
        for container in _above(module):
            near.setdefault(container, []).append(module)
    taken = set(known.values())
    found = {}
    for container, other in containers.items():
        a = [m for m in mine.norms if m not in known and _parent(m) == container]
        b = [m for m in theirs.norms if m not in taken and _parent(m) == other]
        for module, partner in _same_signature(mine, sorted(a), theirs, sorted(b)).items():
            found[module] = (partner, near[container])
    return found


def _in_gaps(
    mine: _Side, theirs: _Side, known: Mapping[str, str]
) -> dict[str, tuple[str, list[str]]]:
    """Norm layers alone between two matched modules that are neighbours likewise in the donor.

    Only where both files keep the order of registration; the ends of a file are no neighbours. A
    file may register each norm before its matrix and the other behind: every gap then holds the
    norm of the next matrix, and looks the same. What tells are the ends of such a stretch, where
    one file has a norm and the other has none: in between values have to agree.
    """
    if mine.sorted or theirs.sorted:
        return {}
    around = _Around(mine, theirs, known)
    found = {}
    for stretch in around.stretches():
        sure = around.alike(stretch[0], stretch[-1])
        for left, right in itertools.pairwise(stretch):
            (gap, their_gap), (after, their_after) = around.behind(left), around.behind(right)
            before, their_before = around.before(left)
            pairs = _same_signature(mine, gap, theirs, their_gap)
            for module, partner in pairs.items():
                ours, others = [module, *before, *after], [partner, *their_before, *their_after]
                if _stands(mine, ours, theirs, others, sure):
                    found[module] = (partner, [left, right])
    return found


@dataclass(frozen=True)
class _Around:
    """The open norms beside modules that are matched, in both files."""

    mine: _Side
    theirs: _Side
    known: Mapping[str, str]

    @functools.cached_property
    def _taken(self) -> frozenset[str]:
        return frozenset(self.known.values())

    def behind(self, module: str) -> tuple[list[str], list[str]]:
        """Those right behind a matched module of the anchor, and behind its partner."""
        partner = self.known[module]
        return self.mine.behind(module, self.known), self.theirs.behind(partner, self._taken)

    def before(self, module: str) -> tuple[list[str], list[str]]:
        """Those right before."""
        partner = self.known[module]
        return self.mine.before(module, self.known), self.theirs.before(partner, self._taken)

    def alike(self, first: str, last: str) -> bool:
        """Whether both files have the same norms before the one module and behind the other."""
        return self._same(*self.before(first)) and self._same(*self.behind(last))

    def _same(self, mine: Sequence[str], theirs: Sequence[str]) -> bool:
        return _signatures(self.mine, mine) == _signatures(self.theirs, theirs)

    def stretches(self) -> list[list[str]]:
        """Modules matched one by one, with the same norms and nothing else between them."""
        found: list[list[str]] = []
        for module in self.mine.order:
            if module not in self.known:
                continue
            if found and self._is_next(found[-1][-1], module):
                found[-1].append(module)
            else:
                found.append([module])
        return found

    def _is_next(self, left: str, right: str) -> bool:
        gap, their_gap = self.behind(left)
        return (
            self.mine.after(left, len(gap)) == right
            and self.theirs.after(self.known[left], len(their_gap)) == self.known[right]
            and self._same(gap, their_gap)
        )


def _signatures(side: _Side, modules: Sequence[str]) -> list[_Signature]:
    """What modules hold, whatever their order."""
    return sorted(map(side.signature, modules))


def _stands(
    mine: _Side, modules: Sequence[str], theirs: _Side, others: Sequence[str], sure: bool
) -> bool:
    """Whether values allow that the first two are each other's, or show it where it is not `sure`.

    Args:
        mine: the anchor.
        modules: a norm, and those on the far side of the matrices beside it.
        theirs: the donor.
        others: likewise.
        sure: whether both files have the same norms around this stretch.
    """
    alike = mine.signature(modules[0])
    a = [m for m in dict.fromkeys(modules) if mine.signature(m) == alike]
    b = [m for m in dict.fromkeys(others) if theirs.signature(m) == alike]
    cosines, needed = _cosines(mine, a, theirs, b)
    own = float(cosines[0, 0])
    rival = float(max(cosines[0, 1:].max(initial=0.0), cosines[1:, 0].max(initial=0.0)))
    if sure:  # norms at their first values have no cosine
        return rival < needed or rival <= own + MARGIN
    return own >= needed and own >= rival + MARGIN


def _same_signature(
    mine: _Side, modules: Sequence[str], theirs: _Side, others: Sequence[str]
) -> dict[str, str]:
    """Modules paired by last names and shapes of what they hold.

    Where several look alike their own last names decide, else their values.
    """
    groups: dict[_Signature, tuple[list[str], list[str]]] = {}
    for module in modules:
        groups.setdefault(mine.signature(module), ([], []))[0].append(module)
    for other in others:
        groups.setdefault(theirs.signature(other), ([], []))[1].append(other)
    found = {}
    for a, b in groups.values():
        names = {_last(other): other for other in b}
        if len(a) == len(b) == 1:
            found[a[0]] = b[0]
        elif len(a) == len(b) == len(names) and {_last(m) for m in a} == names.keys():
            found |= {module: names[_last(module)] for module in a}
        elif a and b:
            found |= _most_alike(mine, a, theirs, b)
    return found


def _most_alike(
    mine: _Side, modules: Sequence[str], theirs: _Side, others: Sequence[str]
) -> dict[str, str]:
    """Norm layers of one signature, a few neighbours, by the mean cosine of what they hold.

    Of equally many on both sides the last one needs no cosine.
    """
    pairs, _ = assign(*_cosines(mine, modules, theirs, others))
    found = {modules[pair.mine]: others[pair.theirs] for pair in pairs}
    if len(modules) == len(others) == len(found) + 1:
        (last,) = set(modules) - found.keys()
        (other,) = set(others) - set(found.values())
        found[last] = other
    return found


def _cosines(
    mine: _Side, modules: Sequence[str], theirs: _Side, others: Sequence[str]
) -> tuple[NDArray[np.float64], float]:
    """Mean cosines of what modules of one signature hold, and the least that is no chance."""
    a, b = ([side.leaves(m) for m in ms] for side, ms in ((mine, modules), (theirs, others)))
    cosines = [
        centred_cosines(
            mine.checkpoint,
            [leaves[i][2] for leaves in a],
            theirs.checkpoint,
            [leaves[i][2] for leaves in b],
        )
        for i in range(len(a[0]))
    ]
    elements = sum(mine.entries[key].elements for _, _, key in a[0])
    found: NDArray[np.float64] = np.mean(cosines, axis=0)
    return found, needed_cosine(elements)


def _above(module: str) -> list[str]:
    """The containers of a module, from the innermost to the whole model.

    >>> _above("stages.0.conv")
    ['stages.0', 'stages', '']
    """
    found = []
    while module:
        module = _parent(module)
        found.append(module)
    return found


def _parent(module: str) -> str:
    return module.rpartition(".")[0]


def _last(module: str) -> str:
    return module.rpartition(".")[2]
