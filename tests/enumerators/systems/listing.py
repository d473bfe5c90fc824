"""The words in which the systems' networks are listed: convolutions, norms, whole lists.

An entry's `parts` name what it was before it was trained: entries of two systems with the same
parts come from one start. Where nothing else is said that is the key itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..dialects import Entry

Entries = Iterator[Entry]


def tensor(key: str, *shape: int, of: str | None = None) -> Entry:
    return Entry(key, shape, "F32", (key if of is None else of,))


def conv(key: str, *shape: int, bias: bool = True, of: str | None = None) -> Entries:
    """Weight and bias of a convolution or a linear layer; `shape` is that of the weight."""
    start = key if of is None else of
    yield tensor(f"{key}.weight", *shape, of=f"{start}.weight")
    if bias:
        yield tensor(f"{key}.bias", shape[0], of=f"{start}.bias")


def norm(key: str, width: int, of: str | None = None) -> Entries:
    """Weight and bias of a layer norm or group norm."""
    yield from conv(key, width, of=of)


def batch_norm(key: str, width: int, counter: bool = True, of: str | None = None) -> Entries:
    """Batch norm; without its counter as frozen batch norm and torch before 0.4.1 save it."""
    start = key if of is None else of
    yield from norm(key, width, of)
    for leaf in ("running_mean", "running_var"):
        yield tensor(f"{key}.{leaf}", width, of=f"{start}.{leaf}")
    if counter:
        leaf = "num_batches_tracked"
        yield Entry(f"{key}.{leaf}", (), "I64", (f"{start}.{leaf}",))


def prefixed(prefix: str, entries: Iterable[Entry]) -> list[Entry]:
    """The same tensors under longer keys, from the same start."""
    return [entry._replace(key=prefix + entry.key) for entry in entries]
