"""The names a pickle of weights may hold, and what each stands for when it is "called".

The tables are the whole policy: tensors, their storages and plain containers have a function here;
harmless values of training runs (dates, paths, numpy scalars) become an `Opaque` that keeps only
the name; everything else is refused. Nothing named here is imported.

Source of the calls: `torch/_utils.py` and `torch/_weights_only_unpickler.py` of PyTorch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lwmm_hub.checkpoint.entries import DTYPE_CODES, DTYPES
from lwmm_hub.checkpoint.zip_archive import damaged, shown
from lwmm_hub.errors import CheckpointError, UnsafePickleError

MAX_DIMENSIONS = 32  # of numpy 1
_MAX_INDEX = 2**60


@dataclass(frozen=True, slots=True)
class Global:
    """An allowed name, such as `torch.float32`; never the thing itself."""

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Opaque:
    """A harmless value that is not needed to read weights (a date, a numpy scalar), not built."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of `count` elements of `dtype` in the record `key`; bytes where dtype is None."""

    key: str
    dtype: str | None
    count: int


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


# name of the class in torch, or torch.cuda -> safetensors dtype
STORAGES = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
}
STORAGE_TYPES: dict[str, str | None] = {
    **{f"{module}.{name}": d for module in ("torch", "torch.cuda") for name, d in STORAGES.items()},
    "torch.storage.UntypedStorage": None,
    "torch.storage._UntypedStorage": None,
    "torch.UntypedStorage": None,
}
_OTHER_STORAGES = ("ComplexDouble", "QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")
# dtypes without a safetensors code may be named in hyperparameters, not be a tensor's
_OTHER_DTYPES = (
    *("complex32", "complex128", "qint8", "quint8", "qint32", "quint4x2", "quint2x4"),
    *("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
)

# may be named; has no call
NAMED = frozenset(
    {
        *STORAGE_TYPES,
        *(f"torch.{name}Storage" for name in _OTHER_STORAGES),
        *(f"torch.{name}" for name in (*DTYPE_CODES, *_OTHER_DTYPES)),
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
        *(f"builtins.{name}" for name in ("int", "float", "bool", "str", "list", "dict", "tuple")),
    }
)

# may be "called": the result is Opaque
INERT = frozenset(
    {
        "torch.device",
        "torch.serialization._get_layout",
        "_codecs.encode",
        *(f"builtins.{name}" for name in ("set", "frozenset", "bytearray", "complex")),
        *(f"builtins.{name}" for name in ("slice", "range")),
        "collections.Counter",
        "collections.deque",
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *(
            f"{module}.{name}"
            for module in ("pathlib", "pathlib._local")
            for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
        ),
        "numpy.dtype",
        "numpy.ndarray",
        *(
            f"numpy.{core}.{name}"
            for core in ("core", "_core")
            for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
        ),
    }
)

PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}

# called by name, refused with a reason better than "not allowed"
OTHER_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values (device 'meta')",
}


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


def update(name: str, target: dict[object, object], values: list[object]) -> int:
    """Set the items `[key, value, key, value, ...]` of a dictionary.

    Returns:
        how many of the keys were replaced by an `Opaque`.

    Raises:
        CheckpointError: the last key has no value.
    """
    if len(values) % 2:
        raise unexpected(name, "a key without a value")
    odd = 0
    for key, value in zip(values[::2], values[1::2], strict=True):
        plain = dictionary_key(key)
        odd += plain is not key
        target[plain] = value
    return odd


def dictionary_key(key: object) -> object:
    """The key itself where hashing it is quick and cannot be made to collide, else an `Opaque`."""
    if key is None or isinstance(key, str | bytes | float):
        return key
    if isinstance(key, int) and -_MAX_INDEX < key < _MAX_INDEX:
        return key
    return Opaque(type(key).__name__)


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
    count = storage.count * item_bytes(storage.dtype) // item_bytes(dtype)
    if 0 in shape:
        return PickledTensor(storage, dtype, 0, shape, None)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if last >= count:
        raise unexpected(name, f"a tensor that ends at element {last} of a storage of {count}")
    flat = is_contiguous(shape, strides)
    return PickledTensor(storage, dtype, offset, shape, None if flat else strides)


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
}
