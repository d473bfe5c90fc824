"""What a pickle's calls stand for: tensors, their storages, plain containers.

A name of the table below has a function here; those of `inert` stand for nothing, and everything
else is refused. Nothing named here is imported.

Source of the calls: `torch/_utils.py` and `torch/_weights_only_unpickler.py` of PyTorch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lwmm_hub.checkpoint.entries import DTYPE_CODES, DTYPES
from lwmm_hub.checkpoint.inert import INERT
from lwmm_hub.checkpoint.zip_archive import damaged, shown
from lwmm_hub.errors import CheckpointError, UnsafePickleError

MAX_DIMENSIONS = 32  # of numpy 1
_MAX_INDEX = 2**60


@dataclass(frozen=True, slots=True)
class Global:
    """An allowed name, such as `torch.float32`; never the thing itself."""

    name: str


@dataclass(eq=False, slots=True)
class Opaque:
    """A harmless value that is not needed to read weights (a date, a numpy scalar), not built.

    `given` is what its pickle gives it; `tensors` counts the weights in there, once laid out.
    """

    name: str
    given: list[object] | None = None
    tensors: int = 0

    def give(self, value: object) -> None:
        """Keep what it is given, unread."""
        if self.given is None:  # of millions that are given nothing none costs a list
            self.given = []
        self.given.append(value)


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of `count` elements of `dtype` in the record `key`; bytes where dtype is None."""

    key: str
    dtype: str | None
    count: int
    first: int = 0  # of its elements in the record


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A view of a storage: `offset` and `strides` in elements of `dtype`, all within it.

    `strides` is None where the elements are contiguous in row-major order.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None


@dataclass(eq=False, slots=True)
class PickledArray:
    """An array of numpy; `state` is what its pickle sets it to, believed by nobody yet.

    Where `axes` are given, the shape in there is that of the values as they lie in C order, and
    the array has these axes of it.
    """

    state: object = None
    axes: object = None


@dataclass(eq=False, slots=True)
class PickledDtype:
    """A dtype of numpy by its `code`, such as `f4`; `state` says its byte order."""

    code: object
    state: object = None


@dataclass(frozen=True, eq=False, slots=True)
class Latin1:
    """Bytes that are written as text, a character for each."""

    text: str


@dataclass(frozen=True, eq=False, slots=True)
class Run:
    """`length` bytes of a pickle that were left in its file, from `offset` on."""

    offset: int
    length: int


def unexpected(name: str, what: str) -> CheckpointError:
    """The error for a pickle that no version of `torch.save` writes."""
    return damaged(name, f"its pickle holds {what}")


def unsafe(name: str, what: str) -> UnsafePickleError:
    """The error for a pickle that names `what`, which is neither a tensor nor a container."""
    return UnsafePickleError(
        f"{name} holds {shown(what)}, which is neither a tensor nor a plain container: nothing was "
        "executed. Where you trust the file, load it with the code that wrote it and save the "
        "weights alone: torch.save(model.state_dict(), ...)."
    )


def kind_of(value: object) -> str:
    """What a value is, for a message; the value itself may be of any size."""
    return f"a {type(value).__name__}"


def as_size(name: str, value: object) -> int:
    """The value, which is a whole number from 0 to 2**60.

    Raises:
        CheckpointError: it is something else.
    """
    if type(value) is not int or not 0 <= value < _MAX_INDEX:
        what = shown(value) if isinstance(value, int | str) else kind_of(value)
        raise unexpected(name, f"{what} where a size belongs")
    return value


def as_sizes(name: str, values: object) -> tuple[int, ...]:
    """The values of a shape or of strides.

    Raises:
        CheckpointError: they are something else.
    """
    if not isinstance(values, tuple | list) or len(values) > MAX_DIMENSIONS:
        raise unexpected(
            name, f"{kind_of(values)} where a shape of at most {MAX_DIMENSIONS} sizes belongs"
        )
    return tuple(as_size(name, value) for value in values)


def update(name: str, target: dict[object, object], values: list[object]) -> None:
    """Set the items `[key, value, key, value, ...]` of a dictionary.

    Raises:
        CheckpointError: the last key has no value.
    """
    if len(values) % 2:
        raise unexpected(name, "a key without a value")
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[dictionary_key(key)] = value


def dictionary_key(key: object) -> object:
    """The key itself where hashing it is quick and cannot be made to collide, else an `Opaque`."""
    if key is None or isinstance(key, str | bytes | float):
        return key
    if isinstance(key, int) and -_MAX_INDEX < key < _MAX_INDEX:
        return key
    return Opaque(type(key).__name__)


def part_of(name: str, storage: Storage, part: object) -> Storage:
    """The part of a storage that a view of it is, `(name, offset, size)` (PyTorch before 0.4).

    Raises:
        CheckpointError: it is none.
    """
    if not isinstance(part, tuple) or len(part) != 3:
        raise unexpected(name, "a part of a storage in an unknown form")
    first, count = as_size(name, part[1]), as_size(name, part[2])
    if first + count > storage.count:
        raise unexpected(name, f"a part that reaches beyond a storage of {storage.count}")
    return Storage(storage.key, storage.dtype, count, first)


def _dictionary(name: str, arguments: tuple[object, ...]) -> object:
    """`OrderedDict()` or `defaultdict(factory)`; Python 3 sets the items afterwards.

    A dictionary made from another is refused: copies would cost more than the bytes they take.
    """
    if any(not isinstance(argument, Global) for argument in arguments):
        raise unexpected(name, "a dictionary made from another value")
    return {}


def _size(name: str, arguments: tuple[object, ...]) -> object:
    return as_sizes(name, arguments[0] if arguments else ())


def _tensor(name: str, arguments: tuple[object, ...]) -> object:
    """`_rebuild_tensor(storage, offset, size, stride)`, of PyTorch before 0.4."""
    return _view(name, arguments, None, None)


def _tensor_v2(name: str, arguments: tuple[object, ...]) -> object:
    """`_rebuild_tensor_v2(..., requires_grad, backward_hooks, metadata=None)`."""
    return _view(name, arguments, None, arguments[6] if len(arguments) > 6 else None)


def _tensor_v3(name: str, arguments: tuple[object, ...]) -> object:
    """`_rebuild_tensor_v3(..., requires_grad, backward_hooks, dtype, metadata=None)`."""
    if len(arguments) < 7 or not isinstance(arguments[6], Global):
        raise unexpected(name, "a tensor without a dtype")
    code = DTYPE_CODES.get(arguments[6].name.removeprefix("torch."))
    if code is None:
        raise CheckpointError(
            f"{name} holds a tensor of {arguments[6].name}, a dtype that cannot be "
            "merged. Convert it to another dtype and save the state dict again."
        )
    return _view(name, arguments, code, arguments[7] if len(arguments) > 7 else None)


def _view(
    name: str, arguments: tuple[object, ...], dtype: str | None, metadata: object
) -> PickledTensor:
    if len(arguments) < 4 or not isinstance(arguments[0], Storage):
        raise unexpected(name, "a tensor without a storage")
    storage = arguments[0]
    offset = as_size(name, arguments[1])
    shape, strides = as_sizes(name, arguments[2]), as_sizes(name, arguments[3])
    if metadata:
        raise CheckpointError(
            f"{name} holds a conjugated or negated view of a tensor, whose bytes are not "
            "its values. Save the state dict again after tensor.resolve_neg().resolve_conj()."
        )
    dtype = dtype or storage.dtype
    if dtype is None:
        raise unexpected(name, "a tensor without a dtype")
    if len(shape) != len(strides):
        raise unexpected(name, "a tensor with more sizes than strides")
    first, count = (
        n * item_bytes(storage.dtype) // item_bytes(dtype) for n in (storage.first, storage.count)
    )
    if 0 in shape:
        return PickledTensor(storage, dtype, 0, shape, None)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if last >= count:
        raise unexpected(name, f"a tensor that ends at element {last} of a storage of {count}")
    flat = is_contiguous(shape, strides)
    return PickledTensor(storage, dtype, first + offset, shape, None if flat else strides)


def item_bytes(dtype: str | None) -> int:
    """Bytes of one element; one where a storage has no dtype."""
    return 1 if dtype is None else DTYPES[dtype][0] // 8


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether elements lie one after the other in row-major order; strides in elements.

    >>> is_contiguous((2, 1, 3), (3, 7, 1)), is_contiguous((2, 3), (1, 2))
    (True, False)
    """
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _parameter(name: str, arguments: tuple[object, ...]) -> object:
    """`_rebuild_parameter(data, ...)` and `_rebuild_parameter_with_state(data, ...)`."""
    if not arguments or not isinstance(arguments[0], PickledTensor):
        raise unexpected(name, "a parameter without a tensor")
    return arguments[0]


def _typed(name: str, arguments: tuple[object, ...]) -> object:
    """`_rebuild_from_type_v2(function, type, arguments, state)`: a tensor with attributes."""
    if len(arguments) != 4:
        raise unexpected(name, "a tensor with attributes in an unknown form")
    function, _, inner, _ = arguments
    if not isinstance(function, Global) or function.name not in _TENSOR_CALLS:
        raise unexpected(name, "a tensor with attributes in an unknown form")
    if not isinstance(inner, tuple):
        raise unexpected(name, "a tensor with attributes in an unknown form")
    return _TENSOR_CALLS[function.name](name, inner)


def _attribute(name: str, arguments: tuple[object, ...]) -> object:
    """`getattr(class, "method")`, as protocol 2 writes a method of a class that is inert."""
    if len(arguments) == 2 and isinstance(arguments[0], Global) and arguments[0].name in INERT:
        return Opaque(arguments[0].name)
    raise unsafe(name, "builtins.getattr")


def _array(name: str, arguments: tuple[object, ...]) -> object:
    """`_reconstruct(ndarray, (0,), b"b")`; its values come as a state afterwards."""
    return PickledArray()


def _array_of_buffer(name: str, arguments: tuple[object, ...]) -> object:
    """`_frombuffer(buffer, dtype, shape, order, axes=None)`, of protocol 5; numpy 2.3 has axes."""
    if len(arguments) not in (4, 5):
        raise unexpected(name, "an array in an unknown form")
    values, dtype, shape, order, axes = (*arguments, None)[:5]
    if order not in ("C", "F", "K") or (order == "K") != (axes is not None):
        raise unexpected(name, "an array in an unknown form")
    return PickledArray((1, shape, dtype, order == "F", values), axes)


def _array_dtype(name: str, arguments: tuple[object, ...]) -> object:
    """`dtype("f4", False, True)`; its byte order comes as a state afterwards."""
    return PickledDtype(arguments[0] if arguments else None)


def _encoded(name: str, arguments: tuple[object, ...]) -> object:
    """`encode(text, "latin1")`: bytes, as protocol 2 writes them; of another text nothing."""
    if len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1":
        return Latin1(arguments[0])
    return Opaque("_codecs.encode")


Call = Callable[[str, tuple[object, ...]], object]
_TENSOR_CALLS: dict[str, Call] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
CALLS: dict[str, Call] = {
    **_TENSOR_CALLS,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.Size": _size,
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _dictionary,
    "builtins.getattr": _attribute,
    "_codecs.encode": _encoded,
    "builtins.bytes": lambda _, arguments: Opaque("builtins.bytes") if arguments else b"",
    "numpy.dtype": _array_dtype,
    **{
        f"numpy.{core}.{function}": call
        for core in ("core", "_core")
        for function, call in (
            ("multiarray._reconstruct", _array),
            ("numeric._frombuffer", _array_of_buffer),
        )
    },
}
