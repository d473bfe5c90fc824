"""When each tensor of a model is last used by a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

# asking for a property of a tensor is no use of its values
_ASKS = {"__get__", "__set__", "size", "dim", "numel", "stride", "is_floating_point", "data_ptr"}


class _Watch(TorchFunctionMode):
    """Notes, for each tensor that a torch function is called with, the moment of the last call."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.moments: dict[str, int] = {}
        self.now = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") not in _ASKS:
            self.now += 1
            for tensor in _tensors([*args, *kwargs.values()]):
                if name := self.names.get(id(tensor)):
                    self.moments[name] = self.now
        return function(*args, **kwargs)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def last_use(model: nn.Module, **inputs: torch.Tensor) -> dict[str, int]:
    """Name in the state dict -> moment at which its module used one of its tensors last.

    A module's own tensors that files hold (weight, bias, statistics) are one layer and share the
    last moment of any; constants that it makes itself are no use of it, and tensors of modules that
    do not run are absent. The model runs for real, on the CPU.
    """
    watch = _Watch({id(value): name for name, value in model.state_dict(keep_vars=True).items()})
    with torch.no_grad(), watch:
        model(**inputs)
    module_moment: dict[str, int] = {}
    for name, moment in watch.moments.items():
        module = name.rpartition(".")[0]
        module_moment[module] = max(module_moment.get(module, 0), moment)
    return {
        name: module_moment[name.rpartition(".")[0]]
        for name in model.state_dict()
        if name.rpartition(".")[0] in module_moment
    }
