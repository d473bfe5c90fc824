"""What a pickle describes, as a tree of plain containers with its tensors as entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lwmm_hub.checkpoint.entries import TensorEntry
from lwmm_hub.checkpoint.rebuilding import Global, Opaque, PickledArray, PickledTensor
from lwmm_hub.checkpoint.zip_archive import shown
from lwmm_hub.errors import CheckpointError

MAX_VALUES = 2_000_000  # visited; a few bytes of pickle can describe 2**64 by references
MAX_DEPTH = 64
MAX_TENSORS = 200_000
MAX_NAMES = 64 * 1024 * 1024  # characters in all paths together


@dataclass(frozen=True)
class PickledFile:
    """What a pickled file holds.

    `entries` are all tensors in the order of the file under their full path, e.g.
    `state_dict/backbone.norm1.weight` (dictionary keys and `[index]`, joined by `/`). `tree` is the
    same as nested dict, list and tuple, in which a tensor is a `TensorEntry` under its local key,
    and a value that is neither plain nor needed is an `Opaque`, which says how many it holds.
    """

    name: str
    entries: dict[str, TensorEntry]
    tree: object


def lay_out(
    name: str,
    root: object,
    as_entry: Callable[[object], TensorEntry | None],
    kind: type[PickledTensor | PickledArray] = PickledTensor,
) -> PickledFile:
    """The tree below `root` in plain containers, its tensors as entries.

    Args:
        name: what to call the file in a message.
        root: what the pickle describes.
        as_entry: the entry of a value that is a tensor (any key), else None.
        kind: what such values are.

    Raises:
        CheckpointError: the tree is too large or too deep, or two tensors have one path.
    """
    layout = _Layout(name, as_entry, kind)
    tree = layout.plain(root, ())
    return PickledFile(name, layout.entries, tree)


class _Layout:
    """One walk through what a pickle describes, which stops where a small file describes much."""

    def __init__(
        self,
        name: str,
        as_entry: Callable[[object], TensorEntry | None],
        kind: type[PickledTensor | PickledArray],
    ) -> None:
        self.name = name
        self.as_entry = as_entry
        self.kind = kind
        self.entries: dict[str, TensorEntry] = {}
        self.visited = 0
        self.characters = 0

    def plain(self, value: object, path: tuple[str, ...]) -> object:
        self.visit(len(path))
        if value is None or isinstance(value, str | int | float | bytes):
            return value
        if isinstance(value, Opaque):
            held = Opaque(value.name, tensors=self.tensors_in(value))
            if held.tensors:  # and its path will be told
                self.name_of(path)
            return held
        if isinstance(value, dict):
            return {key: self.plain(item, (*path, step(key))) for key, item in value.items()}
        if isinstance(value, list):
            return [self.plain(item, (*path, f"[{i}]")) for i, item in enumerate(value)]
        if isinstance(value, tuple):
            return tuple(self.plain(item, (*path, f"[{i}]")) for i, item in enumerate(value))
        if isinstance(value, Global):
            return Opaque(value.name)
        entry = self.as_entry(value)
        if entry is None:
            return Opaque(f"{type(value).__module__}.{type(value).__qualname__}")
        self.add(self.name_of(path), entry)
        return replace(entry, key=path[-1] if path else "")

    def visit(self, depth: int) -> None:
        self.visited += 1
        if self.visited > MAX_VALUES or depth > MAX_DEPTH:
            raise self.too_much(f"nests more than {MAX_VALUES} values or {MAX_DEPTH} levels")

    def tensors_in(self, carrier: Opaque) -> int:
        """How many tensors it was given, however deep, but for those of torch's own instances.

        Losses, layers and optimizers hold tensors beside the weights; a dictionary of a class of
        its own may hold the weights.
        """
        seen: set[int] = set()
        waiting: list[object] = [carrier]
        found = 0
        while waiting:
            value = waiting.pop()
            self.visit(0)
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, self.kind):
                found += 1
            elif isinstance(value, Opaque):
                waiting += () if value.name.startswith("torch.") else value.given or ()
            elif isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, list | tuple):
                waiting += value
        return found

    def name_of(self, path: tuple[str, ...]) -> str:
        """The full path; all that are asked for have bounded length together."""
        full = "/".join(path)
        self.characters += len(full)
        if self.characters > MAX_NAMES:
            raise self.too_much(f"has names of tensors of more than {MAX_NAMES} characters")
        return full

    def add(self, full: str, entry: TensorEntry) -> None:
        if len(self.entries) == MAX_TENSORS:
            raise self.too_much(f"holds more than {MAX_TENSORS} tensors")
        if full in self.entries:
            raise CheckpointError(
                f"{self.name} holds two tensors called {shown(full)}. Rename one and save it again."
            )
        self.entries[full] = replace(entry, key=full)

    def too_much(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.name} {what}. Save the state dict alone: torch.save(model.state_dict(), ...)."
        )


def step(key: object) -> str:
    """What a key of any kind is called in a path."""
    if isinstance(key, str):
        return key
    return f"[{key.name if isinstance(key, Opaque) else shown_key(key)}]"


def shown_key(key: object) -> str:
    """A key as a message may print it; only scalars are printed in full."""
    return shown(key) if isinstance(key, str | bytes | int) else shown(str(type(key).__name__))


def classes_in(tree: object) -> tuple[str, ...]:
    """The names of classes that a training run noted beside the weights; none where it did not.

    As mmcv 1 (`meta/CLASSES`) and mmengine (`meta/dataset_meta/classes`) save them.

    >>> classes_in({"meta": {"CLASSES": ("road", "sky")}, "state_dict": {}})
    ('road', 'sky')
    """
    meta = tree.get("meta") if isinstance(tree, dict) else None
    inner = meta.get("dataset_meta") if isinstance(meta, dict) else None
    for place in (meta, inner):
        for key in ("CLASSES", "classes"):
            names = place.get(key) if isinstance(place, dict) else None
            if isinstance(names, tuple | list) and all(isinstance(name, str) for name in names):
                return tuple(names)
    return ()
