"""Where the weights lie among what else a training run saved, for every pickled format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from lwmm_hub.checkpoint.entries import TensorEntry
from lwmm_hub.checkpoint.rebuilding import Global, Opaque
from lwmm_hub.checkpoint.zip_archive import shown
from lwmm_hub.errors import CheckpointError

MAX_VALUES = 2_000_000  # visited; a few bytes of pickle can describe 2**64 by references
MAX_DEPTH = 64
MAX_TENSORS = 200_000
MAX_SHOWN = 200  # characters of a path that is only told
MAX_NAMES = 64 * 1024 * 1024  # characters in all paths together

# averages of a student over its training
_AVERAGES: tuple[tuple[str, ...], ...] = (
    ("params_ema",),
    ("state_dict_ema",),  # timm
    ("model_ema",),  # torchvision
    ("ema",),
    ("teacher",),
)

# Keys under which training code saves the weights, most wanted first: the trained student before
# averages of it. Several keys in a row are parts of one model.
WRAPPERS: tuple[tuple[str, ...], ...] = (
    ("state_dict",),  # mmcv, Lightning, MaxSquare
    ("model_state_dict",),  # GLC
    ("model_state",),
    ("model",),  # DETR, MIC detection
    ("net",),
    ("network",),
    ("module",),  # DeepSpeed
    ("params",),  # BasicSR
    ("student",),  # DINO, mean teachers
    ("feature_extractor", "classifier"),  # FADA
    *_AVERAGES,
)
_OPTIMIZERS = ("optim", "scheduler", "scaler")

# put before every key by wrappers of modules
PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
MAX_PREFIXES = 16  # taken off; each is looked for in every key


@dataclass(frozen=True)
class PickledFile:
    """What a pickled file holds.

    `entries` are all tensors in the order of the file under their full path, e.g.
    `state_dict/backbone.norm1.weight` (dictionary keys and `[index]`, joined by `/`). `tree` is the
    same as nested dict, list and tuple, in which a tensor is a `TensorEntry` under its local key,
    and a value that is neither plain nor needed is an `Opaque`.
    """

    name: str
    entries: dict[str, TensorEntry]
    tree: object


@dataclass(frozen=True)
class StateDict:
    """The weights of one model within a file.

    The original key of `entries[key]` is `prefix + key`, at `path` in the tree. Where the model is
    saved in `parts` (keys at `path`), a key is `part/key` and was `prefix + key` within its part.
    `unused` says what else holds tensors, or is no tensor, one line each.
    """

    path: tuple[str, ...]
    prefix: str
    entries: dict[str, TensorEntry]
    parts: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def lay_out(
    name: str, root: object, as_entry: Callable[[object], TensorEntry | None]
) -> PickledFile:
    """The tree below `root` in plain containers, its tensors as entries.

    Args:
        name: what to call the file in a message.
        root: what the pickle describes.
        as_entry: the entry of a value that is a tensor (any key), else None.

    Raises:
        CheckpointError: the tree is too large or too deep, or two tensors have one path.
    """
    layout = _Layout(name, as_entry)
    tree = layout.plain(root, ())
    return PickledFile(name, layout.entries, tree)


class _Layout:
    """One walk through what a pickle describes, which stops where a small file describes much."""

    def __init__(self, name: str, as_entry: Callable[[object], TensorEntry | None]) -> None:
        self.name = name
        self.as_entry = as_entry
        self.entries: dict[str, TensorEntry] = {}
        self.visited = 0
        self.characters = 0

    def plain(self, value: object, path: tuple[str, ...]) -> object:
        self.visited += 1
        if self.visited > MAX_VALUES or len(path) > MAX_DEPTH:
            raise self.too_much(f"nests more than {MAX_VALUES} values or {MAX_DEPTH} levels")
        if value is None or isinstance(value, str | int | float | bytes | Opaque):
            return value
        if isinstance(value, dict):
            return {key: self.plain(item, (*path, _step(key))) for key, item in value.items()}
        if isinstance(value, list):
            return [self.plain(item, (*path, f"[{i}]")) for i, item in enumerate(value)]
        if isinstance(value, tuple):
            return tuple(self.plain(item, (*path, f"[{i}]")) for i, item in enumerate(value))
        if isinstance(value, Global):
            return Opaque(value.name)
        entry = self.as_entry(value)
        if entry is None:
            return Opaque(f"{type(value).__module__}.{type(value).__qualname__}")
        self.add("/".join(path), entry)
        return replace(entry, key=path[-1] if path else "")

    def add(self, full: str, entry: TensorEntry) -> None:
        self.characters += len(full)
        if len(self.entries) == MAX_TENSORS or self.characters > MAX_NAMES:
            raise self.too_much(
                f"holds more than {MAX_TENSORS} tensors or names of {MAX_NAMES} characters"
            )
        if full in self.entries:
            raise CheckpointError(
                f"{self.name} holds two tensors called {shown(full)}. Rename one and save it again."
            )
        self.entries[full] = replace(entry, key=full)

    def too_much(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.name} {what}. Save the state dict alone: torch.save(model.state_dict(), ...)."
        )


def _step(key: object) -> str:
    if isinstance(key, str):
        return key
    return f"[{key.name if isinstance(key, Opaque) else shown_key(key)}]"


def shown_key(key: object) -> str:
    """A key as a message may print it; only scalars are printed in full."""
    return shown(key) if isinstance(key, str | bytes | int) else shown(str(type(key).__name__))


def find_state_dicts(
    tree: object, name: str, wrappers: Iterable[tuple[str, ...]] = WRAPPERS
) -> StateDict:
    """The weights in a tree: the first of `wrappers` that it has, else the tree itself.

    What the wrapper holds is looked at in the same way (`{"model": {"state_dict": ...}}`). Where no
    wrapper is known, the only dictionary with tensors is taken; if there are several, none is.
    Optimizer state is never taken. Everything with tensors that is not taken is listed in `unused`.

    Args:
        tree: `PickledFile.tree`.
        name: what to call the file in a message.
        wrappers: the table to read, most wanted first.

    Raises:
        CheckpointError: no state dict, several of equal rank, or keys that are not text.
    """
    wrappers = tuple(wrappers)
    counted: dict[int, int] = {}
    path: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    while not parts:
        here = _below(tree, path)
        found = _first_wrapper(here, wrappers, counted)
        if found is not None and found in _AVERAGES:
            known = {key for row in wrappers for key in row}
            _refuse_unknown_student(here, found[0], known, name, counted)
        found = found or _only_child(here, name, counted)
        if found is None:
            break
        if len(found) == 1:
            path += found
        else:
            parts = found
    here = _below(tree, path)
    dicts = {part: here[part] for part in parts} if isinstance(here, dict) and parts else {"": here}
    taken, notes = _tensors(dicts, "/".join(path), name, counted)
    if not any(taken.values()):
        raise CheckpointError(
            f"{name} holds no state dict (a dictionary of named tensors). Save one: "
            "torch.save(model.state_dict(), ...)."
        )
    prefix, stripped = strip_prefix([key for entries in taken.values() for key in entries])
    named = {
        f"{part}/{stripped[key]}" if part else stripped[key]: entry
        for part, entries in taken.items()
        for key, entry in entries.items()
    }
    entries = {key: replace(entry, key=key) for key, entry in named.items()}
    used = {(*path, part) if part else path for part in dicts}
    others = [
        f"{shown('/'.join(where)) if where else 'top level'}: {count} tensors"
        for where, count in _dicts_of_tensors(tree)
        if where not in used
    ]
    return StateDict(path, prefix, entries, parts, (*others, *notes))


def strip_prefix(keys: Iterable[str]) -> tuple[str, dict[str, str]]:
    """What `DataParallel` and `torch.compile` put before all keys, and key -> key without it.

    >>> strip_prefix(["module.conv.weight", "module.conv.bias"])
    ('module.', {'module.conv.weight': 'conv.weight', 'module.conv.bias': 'conv.bias'})
    >>> strip_prefix(["module.weight", "head.weight"])[0]
    ''
    """
    keys = list(keys)
    prefix = ""
    for _ in range(MAX_PREFIXES if keys else 0):
        for following in PREFIXES:
            longer = prefix + following
            if all(key.startswith(longer) and len(key) > len(longer) for key in keys):
                prefix = longer
                break
        else:
            break
    return prefix, {key: key[len(prefix) :] for key in keys}


def _below(tree: object, path: tuple[str, ...]) -> object:
    for key in path:
        tree = tree[key] if isinstance(tree, dict) else None
    return tree


def _tensor_count(value: object, counted: dict[int, int]) -> int:
    """Tensors in a dictionary and the dictionaries below it, without optimizer state.

    `counted` maps the ids of dictionaries of one tree to their counts: each is walked once, however
    many wrappers lie around it.
    """
    if not isinstance(value, dict):
        return 0
    if id(value) not in counted:
        counted[id(value)] = _direct_count(value) + sum(
            _tensor_count(item, counted) for key, item in value.items() if not _of_optimizer(key)
        )
    return counted[id(value)]


def _direct_count(value: Mapping[object, object]) -> int:
    return sum(isinstance(item, TensorEntry) for item in value.values())


def _of_optimizer(key: object) -> bool:
    return isinstance(key, str) and any(word in key.lower() for word in _OPTIMIZERS)


def _first_wrapper(
    value: object, wrappers: tuple[tuple[str, ...], ...], counted: dict[int, int]
) -> tuple[str, ...] | None:
    """The first row whose keys all hold tensors, and at least as many as lie beside them."""
    if not isinstance(value, dict):
        return None
    beside = _direct_count(value)
    for row in wrappers:
        counts = [_tensor_count(value.get(key), counted) for key in row]
        if all(counts) and sum(counts) >= beside:
            return row
    return None


def _refuse_unknown_student(
    value: object, average: str, known: Collection[str], name: str, counted: dict[int, int]
) -> None:
    """An average is taken only where nothing as large and unknown lies beside it: the student.

    Raises:
        CheckpointError: something does.
    """
    assert isinstance(value, dict)
    size = _tensor_count(value[average], counted)
    others = [
        key
        for key, item in value.items()
        if key not in known and not _of_optimizer(key) and _tensor_count(item, counted) >= size
    ]
    if others:
        raise CheckpointError(
            f"{name} holds an average of weights, {shown(average)}, and may hold the network "
            f"itself as {', '.join(map(shown_key, others[:8]))}. Save the one to merge in a file "
            "of its own with torch.save."
        )


def _only_child(value: object, name: str, counted: dict[int, int]) -> tuple[str, ...] | None:
    """The one key whose dictionary holds tensors, if no tensor lies beside it."""
    if not isinstance(value, dict) or _direct_count(value):
        return None
    children = [
        key
        for key, item in value.items()
        if isinstance(key, str) and not _of_optimizer(key) and _tensor_count(item, counted)
    ]
    if len(children) > 1:
        raise CheckpointError(
            f"{name} holds several dictionaries of tensors ({', '.join(map(shown, children[:8]))}) "
            "and none under a known name such as 'state_dict'. Save the one to merge in a file of "
            "its own with torch.save."
        )
    return (children[0],) if children else None


def _tensors(
    dicts: Mapping[str, object], where: str, name: str, counted: dict[int, int]
) -> tuple[dict[str, dict[str, TensorEntry]], list[str]]:
    """The tensors directly in each dictionary, and a line for everything else in it."""
    taken: dict[str, dict[str, TensorEntry]] = {}
    notes: list[str] = []
    where = where if len(where) <= MAX_SHOWN else f"{where[:MAX_SHOWN]}..."
    for part, value in dicts.items():
        entries = taken.setdefault(part, {})
        for key, item in value.items() if isinstance(value, dict) else ():
            if isinstance(item, TensorEntry) and isinstance(key, str):
                entries[key] = item
            elif isinstance(item, TensorEntry):
                raise CheckpointError(
                    f"{name}: the tensor {shown_key(key)} in {shown(where or 'the file')} has a "
                    "name that is not text. Save a state dict: torch.save(model.state_dict(), ...)."
                )
            elif not _tensor_count(item, counted):
                path = "/".join(filter(None, (where, part, _step(key)[:MAX_SHOWN])))
                notes.append(f"{shown(path)}: not a tensor")
    return taken, notes


def _dicts_of_tensors(
    tree: object, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], int]]:
    """(path, tensors directly in it) of every dictionary of tensors outside optimizer state."""
    if not isinstance(tree, dict):
        return
    count = _direct_count(tree)
    if count:
        yield path, count
    for key, item in tree.items():
        if not _of_optimizer(key):
            yield from _dicts_of_tensors(item, (*path, _step(key)))
