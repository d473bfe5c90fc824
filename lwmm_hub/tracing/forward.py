"""One forward pass, traced: which module's tensors were last used when."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lwmm_hub.tracing.guard import OutOfTime

MAX_LIST = 1 << 16  # elements of a tensor that a model may ask to see as a Python list
MAX_ZERO_TENSOR = 1 << 28  # elements of one tensor, for the fallback on the CPU
MAX_ZERO_SIDE = 1024

ON_META = "forward pass traced on the meta device"
WITH_ZEROS = "forward pass traced with zeros"

_AUXILIARY = re.compile(r"(^|\.)aux(iliary)?(_|\.|$)")


def module_ranks(model: Any, n_keys: int) -> tuple[dict[str, int], str]:
    """Return the rank of each module that owns tensors, and how it was found."""
    height, width = _image_size(model)
    sizes = dict.fromkeys([(height, width), *((side, side) for side in (224, 512, 1024, 1536))])
    failures: list[Exception] = []
    for size in sizes:
        try:
            return _ranks_by_last_use(model, "meta", size, n_keys), ON_META
        except Exception as error:  # noqa: BLE001 - whatever a class's forward raises
            failures.append(error)
    largest = max(tensor.numel() for tensor in _owned_tensors(model))
    if max(height, width) <= MAX_ZERO_SIDE and largest <= MAX_ZERO_TENSOR:
        _fill_with_zeros(model)
        for size in dict.fromkeys([(min(height, 128), min(width, 128)), (height, width)]):
            try:
                return _ranks_by_last_use(model, "cpu", size, n_keys), WITH_ZEROS
            except Exception as error:  # noqa: BLE001 - as above
                failures.append(error)
    raise failures[0]


def _owned_tensors(module: Any) -> list[Any]:
    return [*module.parameters(), *module.buffers()]


def _layer_tensors(module: Any) -> list[Any]:
    """The module's own tensors that files hold; its constants only where it has nothing else."""
    constants = module._non_persistent_buffers_set
    held = [
        *module.parameters(recurse=False),
        *(t for name, t in module.named_buffers(recurse=False) if name not in constants),
    ]
    return held or list(module.buffers(recurse=False))


def _ranks_by_last_use(
    model: Any, device: str, size: tuple[int, int], n_keys: int
) -> dict[str, int]:
    """Run one forward pass and number the modules that own tensors by their last use.

    Modules that never ran (branches not taken, constants of a loss) share the rank of the module
    registered before them. Auxiliary heads are side branches and come last.
    """
    import torch

    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for tensor in _layer_tensors(module):
            owners.setdefault(id(tensor), []).append(name)
    registered = list(dict.fromkeys(name for names in owners.values() for name in names))
    tracer = _tracer(owners, n_keys)
    with torch.no_grad(), torch.device(device), tracer:
        model(**_inputs(model, device, size))
    last_use: dict[str, int] = tracer.last_use
    auxiliary = [name for name in registered if _AUXILIARY.search(name)]
    main = [name for name in registered if name in last_use and name not in set(auxiliary)]
    order = sorted(main, key=last_use.__getitem__)  # stable: ties stay as registered
    order += sorted(auxiliary, key=lambda name: last_use.get(name, tracer.calls))
    ranks = {name: rank for rank, name in enumerate(order)}
    before = 0
    for name in registered:
        before = ranks.setdefault(name, before)
    return ranks


def _fill_with_zeros(model: Any) -> None:
    """Replace every tensor by one zero on the CPU, expanded to its shape: no memory."""
    import torch

    zeros: dict[int, Any] = {}

    def zero_like(tensor: Any) -> Any:
        if id(tensor) not in zeros:
            zero = torch.zeros((), dtype=tensor.dtype, device="cpu").expand(tensor.shape)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            zeros[id(tensor)] = (
                torch.nn.Parameter(zero, requires_grad=False) if is_parameter else zero
            )
        return zeros[id(tensor)]

    for module in list(model.modules()):
        for held in (module._parameters, module._buffers):
            for name, tensor in list(held.items()):
                if tensor is not None:
                    held[name] = zero_like(tensor)


def _image_size(model: Any) -> tuple[int, int]:
    """Return height and width of the image that the config asks for."""
    for config in _configs(model):
        size = getattr(config, "image_size", None)
        if isinstance(size, int):
            return max(size, 32), max(size, 32)
        if isinstance(size, list | tuple) and size and isinstance(size[0], int):
            return max(size[0], 32), max(size[-1], 32)
    return 224, 224


def _configs(model: Any) -> list[Any]:
    inner = [getattr(model.config, name, None) for name in ("backbone_config", "vision_config")]
    return [model.config, *(config for config in inner if config is not None)]


def _inputs(model: Any, device: str, size: tuple[int, int]) -> dict[str, Any]:
    """Return one empty image, and what else the forward pass of this class cannot do without."""
    import torch

    def zeros(*shape: int, dtype: Any = torch.float32) -> Any:
        return torch.zeros(shape, dtype=dtype, device=device)

    height, width = size
    channels = (getattr(config, "num_channels", None) for config in _configs(model))
    n_channels = next((n for n in channels if isinstance(n, int)), 3)
    accepted = inspect.signature(model.forward).parameters
    if "prompt_pixel_values" in accepted:  # SegGPT stacks prompt and image
        half = zeros(1, n_channels, height // 2, width)
        return {"pixel_values": half, "prompt_pixel_values": half, "prompt_masks": half}
    if "pixel_values_videos" in accepted:
        return {"pixel_values_videos": zeros(1, 2, n_channels, height, width)}
    inputs = {"pixel_values": zeros(1, n_channels, height, width)}
    if "task_inputs" in accepted:  # OneFormer
        inputs["task_inputs"] = zeros(1, model.config.task_seq_len)
    if "input_ids" in accepted:  # CLIPSeg
        inputs["input_ids"] = zeros(1, 5, dtype=torch.long)
        inputs["attention_mask"] = zeros(1, 5, dtype=torch.long)
    if "input_points" in accepted:  # SAM
        inputs["input_points"] = zeros(1, 1, 1, 2)
    return inputs


# Calls that look at a tensor without computing with it.
_METADATA_CALL = re.compile(
    r"__(get|set|repr|format)__|size|dim|numel|stride|shape|data_ptr|get_device|element_size"
    r"|is_(floating_point|complex|contiguous)"
)


def call_counter(n_keys: int) -> Any:
    """Return a torch function mode that only stops absurdly many calls, for building a model."""
    return _tracer({}, n_keys)


def _tracer(owners: Mapping[int, list[str]], n_keys: int) -> Any:
    """Return a torch function mode that notes in `last_use` when each module's tensors are used.

    It answers data-dependent questions on meta tensors (`item`, `bool`, ...) with constants, and
    stops when a model of `n_keys` tensors calls torch absurdly often.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    max_calls = 200_000 + 1_000 * n_keys

    class Tracer(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.last_use: dict[str, int] = {}
            self.calls = 0

        def note(self, values: Any) -> None:
            for value in values:
                if isinstance(value, torch.Tensor):
                    for module in owners.get(id(value), ()):
                        self.last_use[module] = self.calls
                elif isinstance(value, list | tuple):
                    self.note(value)

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            name = getattr(func, "__name__", "")
            self.calls += 1
            if self.calls > max_calls:
                raise OutOfTime
            if not _METADATA_CALL.fullmatch(name):
                self.note(args)
                self.note(kwargs.values())
            first = args[0] if args else None
            if isinstance(first, torch.Tensor) and first.is_meta:
                if name in _META_ANSWERS:
                    return _META_ANSWERS[name](first)
                if name == "where" and len(args) == 1:
                    return _nonzero(first).unbind(1)
            result = func(*args, **kwargs)
            if (
                isinstance(result, torch.Tensor)
                and not result.is_meta
                and result.numel() > MAX_ZERO_TENSOR
            ):
                raise OutOfTime
            return result

    return Tracer()


def _item(tensor: Any) -> bool | int | float:
    if tensor.dtype.is_floating_point:
        return 0.0
    return True if str(tensor.dtype) == "torch.bool" else 0


def _nested_zeros(tensor: Any) -> Any:
    if tensor.numel() > MAX_LIST:
        raise OutOfTime

    def nested(shape: Sequence[int]) -> Any:
        return [nested(shape[1:]) for _ in range(shape[0])] if shape else 0

    return nested(tuple(tensor.shape))


def _nonzero(tensor: Any) -> Any:
    import torch

    return torch.zeros(tensor.numel(), tensor.dim(), dtype=torch.long, device="meta")


_META_ANSWERS: dict[str, Callable[[Any], Any]] = {
    "item": _item,
    "__bool__": lambda _: True,
    "__int__": lambda _: 0,
    "__index__": lambda _: 0,
    "__float__": lambda _: 0.0,
    "tolist": _nested_zeros,
    "nonzero": _nonzero,
    "equal": lambda _: True,
}
