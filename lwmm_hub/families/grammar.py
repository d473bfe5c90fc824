"""The grammar of the tables: rules that rename and split keys, and a depth order."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_FIELD = re.compile(r"\{(?:(?P<from>\d+)-)?(?P<name>[a-z]+)(?:\+(?P<plus>\d+))?\}")
_NUMBER = re.compile(r"\d+")
_EVERY = 1 << 30  # in place of a member's number: no member, but all of them


class KeyRule(NamedTuple):
    """`source` as a dialect spells it, `targets` as we do. A table read both ways, written once.

    `{s}` stands for a number, `{s+1}` and `{3-s}` for that number shifted or reversed, `*` for the
    last name of a key (`weight`, `bias`, `running_mean`, ...). More than one target: the tensor is
    fused and is split along its first axis into equal parts, in this order.
    """

    source: str
    targets: tuple[str, ...]

    def names(self, key: str) -> tuple[str, ...]:
        """The canonical names of `key`, one per part; empty if the rule is about other keys.

        >>> KeyRule("block{s+1}.kv.*", ("stages.{s}.k.*", "stages.{s}.v.*")).names("block4.kv.bias")
        ('stages.3.k.bias', 'stages.3.v.bias')
        """
        return _translate(self.source, self.targets, key)

    def key(self, name: str) -> str | None:
        """The key that has the canonical `name` as one of its parts: the inverse of `names`.

        >>> KeyRule("mlp.{3-i}.*", ("head.{i}.*",)).key("head.1.weight")
        'mlp.2.weight'
        """
        for target in self.targets:
            if keys := _translate(target, (self.source,), name):
                return keys[0]
        return None


def rules(*rows: tuple[str, ...]) -> tuple[KeyRule, ...]:
    """Rows of (source, target, ...) as rules."""
    return tuple(KeyRule(row[0], row[1:]) for row in rows)


def under(source: str, target: str, *rows: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Rows for one group of layers: what stands before every source, and before every target.

    >>> under("block{s+1}.", "stages.{s}.", ("norm1.*", "norm.*"))
    (('block{s+1}.norm1.*', 'stages.{s}.norm.*'),)
    """
    return tuple((source + row[0], *(target + name for name in row[1:])) for row in rows)


def normed(*convolutions: str, below: str = "") -> tuple[str, ...]:
    """Convolutions, each with the norm behind it, as transformers names the two.

    >>> normed("conv_1x1", below="stem.")
    ('stem.conv_1x1.convolution', 'stem.conv_1x1.normalization')
    """
    return tuple(f"{below}{n}.{m}" for n in convolutions for m in ("convolution", "normalization"))


class Repeat(NamedTuple):
    """A numbered group of layers, e.g. `Repeat("stages.{}", (...))`, inside the depth order.

    Attributes:
        prefix: of the members' names.
        order: of a member's layers.
        throughout: layers beside the group that every member uses first: their last use comes right
            before the last member's own layers.
    """

    prefix: str
    order: tuple[str | Repeat, ...]
    throughout: tuple[str | Repeat, ...] = ()


@dataclass(frozen=True)
class Dialect:
    """One spelling of a table's parameters.

    Attributes:
        name: the system that writes it.
        prefixes: what may stand before every key.
        signature: a key (without prefix) that only this spelling has, with a dot in it.
        rules: key -> canonical name; the first that fits decides. Without rules the keys are the
            canonical names.
        dead: key pattern -> why these tensors have no meaning.
        needs: further keys (whole, with what stands before them) that the file must have.
        beside: further keys (without prefix) that stand beside the signature.
        without: keys (without prefix) of other families that spell their signature alike.
        convention: what its network computes where the names alone do not show it; two models of
            unlike conventions match by name and are not the same function.
    """

    name: str
    prefixes: tuple[str, ...]
    signature: str
    rules: tuple[KeyRule, ...] = ()
    dead: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    convention: str = ""

    def __hash__(self) -> int:
        return hash((self.name, self.signature, self.prefixes))

    def names(self, key: str) -> tuple[str, ...]:
        """The canonical names of a key without its prefix; empty where no rule fits."""
        if not self.rules:
            return (key,)
        if self._whole and (names := self._names_of_whole(key)):
            return names
        stem, dot, leaf = key.rpartition(".")
        names = self._names_of_stem(stem + dot) if leaf else ()
        return tuple([name.replace("*", leaf) for name in names])

    def stands(self, prefix: str, keys: Mapping[str, object]) -> bool:
        """Whether a file with these `keys` has this spelling's below `prefix`."""
        return (
            prefix + self.signature in keys
            and all(prefix + key in keys for key in self.beside)
            and not any(prefix + key in keys for key in self.without)
        )

    def why_dead(self, key: str) -> str | None:
        """Why the tensor `key` (without prefix) has no meaning, or None."""
        for text, why in self.dead.items():
            if _pattern(text).fullmatch(key):
                return why
        return None

    @functools.cached_property
    def _whole(self) -> dict[str, list[KeyRule]]:
        """Rules about single tensors, by source with its numbers blanked."""
        return _by_shape([rule for rule in self.rules if not rule.source.endswith("*")])

    def _names_of_whole(self, key: str) -> tuple[str, ...]:
        found = (rule.names(key) for rule in self._whole.get(_NUMBER.sub("#", key), ()))
        return next(filter(None, found), ())

    @functools.cached_property
    def _names_of_stem(self) -> Callable[[str], tuple[str, ...]]:
        """The names of all keys that differ in their last name alone, which is `*` in them.

        Nearly every rule ends in `*`, so the tensors of a module are translated at once, and once
        for all models.
        """
        candidates = _by_shape([rule for rule in self.rules if rule.source.endswith("*")])

        @functools.lru_cache(1 << 14)
        def names(stem: str) -> tuple[str, ...]:
            key = f"{stem}*"
            found = (rule.names(key) for rule in candidates.get(_NUMBER.sub("#", key), ()))
            return next(filter(None, found), ())

        return names


def _by_shape(rules: Sequence[KeyRule]) -> dict[str, list[KeyRule]]:
    """Rules by their source with its numbers blanked, so that few are tried on a key."""
    found: dict[str, list[KeyRule]] = {}
    for rule in rules:
        found.setdefault(_NUMBER.sub("#", _FIELD.sub("#", rule.source)), []).append(rule)
    return found


@dataclass(frozen=True)
class Table:
    """A backbone or a head: its canonical names in depth order, and how each system spells them.

    Attributes:
        name: what to call it.
        backbone: a backbone, else a head.
        dialects: the spellings.
        order: canonical modules in the order of their last use in the forward pass.
        classifier: canonical name of the tensor whose first axis counts the classes.
        untrained: canonical modules that some of these systems save untrained -> standard deviation
            of the normal distribution (of mean 0) that they are initialised from.
    """

    name: str
    backbone: bool
    dialects: tuple[Dialect, ...]
    order: tuple[str | Repeat, ...]
    classifier: str | None = None
    untrained: Mapping[str, float] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.name)

    def rank(self, module: str) -> tuple[int, ...] | None:
        """The place of a canonical module in the forward pass, sortable; None if it has none.

        >>> t = Table("t", True, (), ("stem", Repeat("stages.{}", ("conv", "norm"))))
        >>> t.rank("stages.2.norm"), t.rank("stem"), t.rank("other")
        ((1, 2, 1), (0,), None)
        """
        return self._cached_rank(module)

    def ranks(self, modules: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """The places of a file's modules, of those that have one.

        Only the file shows which member of a group is the last.

        >>> t = Table("t", True, (), (Repeat("blocks.{}", ("q", "k"), throughout=("bias",)),))
        >>> sorted(t.ranks(["bias", "blocks.0.q", "blocks.1.q"]).items(), key=lambda item: item[1])
        [('blocks.0.q', (0, 0, 0)), ('bias', (0, 1, -1, 0)), ('blocks.1.q', (0, 1, 0))]
        """
        places = {module: place for module in modules if (place := self.rank(module)) is not None}
        last: dict[int, int] = {}
        for place in places.values():
            if place[1:] and place[1] != _EVERY:
                last[place[0]] = max(last.get(place[0], 0), place[1])
        return {
            module: (place[0], last.get(place[0], 0), -1, *place[2:])
            if place[1:2] == (_EVERY,)
            else place
            for module, place in places.items()
        }

    @functools.cached_property
    def _cached_rank(self) -> Callable[[str], tuple[int, ...] | None]:
        return functools.lru_cache(1 << 14)(functools.partial(_rank, self.order))


def _rank(order: tuple[str | Repeat, ...], module: str) -> tuple[int, ...] | None:
    for place, item in enumerate(order):
        if isinstance(item, str):
            if module == item:
                return (place,)
        elif found := _prefix(item.prefix).match(module):
            rest = module[found.end() :]
            if rest and not rest.startswith("."):
                continue
            inner = _rank(item.order, rest[1:])
            if inner is not None:
                return (place, int(found[1]), *inner)
        elif item.throughout and (inner := _rank(item.throughout, module)):
            return (place, _EVERY, *inner)
    return None


@functools.cache
def _prefix(text: str) -> re.Pattern[str]:
    return re.compile(text.replace(".", r"\.").replace("{}", r"(\d+)"))


@functools.cache
def _pattern(text: str) -> re.Pattern[str]:
    """A rule's side as a regular expression with one group per field and one for `*`."""
    parts, end = [], 0
    for found in _FIELD.finditer(text):
        parts += [re.escape(text[end : found.start()]), rf"(?P<{found['name']}>0|[1-9]\d{{0,5}})"]
        end = found.end()
    parts.append(re.escape(text[end:]).replace(r"\*", r"(?P<leaf>[^.]+)"))
    return re.compile("".join(parts))


def _translate(source: str, targets: tuple[str, ...], text: str) -> tuple[str, ...]:
    """`text`, which `source` fits, in the spellings of `targets`; empty where it does not fit."""
    found = _pattern(source).fullmatch(text)
    if found is None:
        return ()
    groups = found.groupdict()
    leaf = groups.pop("leaf", "")
    values = {number.name: number.read(int(groups[number.name])) for number in _fields(source)[0]}
    if min(values.values(), default=0) < 0:
        return ()
    names = []
    for target in targets:
        fields, pieces = _fields(target)
        numbers = [number.written(values[number.name]) for number in fields]
        if min(numbers, default=0) < 0:
            return ()
        written = [
            pieces[0],
            *(f"{n}{piece}" for n, piece in zip(numbers, pieces[1:], strict=True)),
        ]
        names.append("".join(written).replace("*", leaf))
    return tuple(names)


class _Number(NamedTuple):
    """A field of a rule's side: it writes `start` plus or minus (`sign`) its value."""

    name: str
    sign: int
    start: int

    def written(self, value: int) -> int:
        return self.start + self.sign * value

    def read(self, written: int) -> int:
        return self.sign * (written - self.start)


@functools.cache
def _fields(text: str) -> tuple[tuple[_Number, ...], tuple[str, ...]]:
    """The fields of a rule's side, and the text before, between and after them."""
    numbers = tuple(
        _Number(item["name"], -1, int(item["from"]))
        if item["from"]
        else _Number(item["name"], 1, int(item["plus"] or 0))
        for item in _FIELD.finditer(text)
    )
    return numbers, tuple(_FIELD.sub("\0", text).split("\0"))
