"""One network whose weights are a blend of several, with gradients for the blend.

The network's own tensors are overwritten with theta = theta_anchor + sum_i H_i (theta_i -
theta_anchor); after a plain backward pass dL/dH_i is the sum over the layer's tensors of
<dL/dtheta, theta_i - theta_anchor>. So one network and one set of gradients is all that is needed
beside the weights of the parents.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lwmm_hub.errors import UsageError
from lwmm_hub.fitting.parents import Group, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class _Part:
    """One tensor of the network and what it is made of.

    Attributes:
        live: what the network computes with.
        base: the anchor's.
        deltas: per donor, its difference from the anchor's; None where it has none.
        group: its group, or per element where a tensor holds several; 0 is no group.
    """

    live: Tensor
    base: Tensor
    deltas: tuple[Tensor | None, ...]
    group: int | Tensor


class Blend:
    """A network with the weights that rows of layer weights give."""

    def __init__(
        self,
        network: torch.nn.Module,
        states: Sequence[State],
        numbers: State,
        groups: Sequence[Group],
    ) -> None:
        """Take over a network; only what is merged will have gradients.

        Args:
            network: of the anchor's kind, on its device, in evaluation mode; it is written to.
            states: per model its tensors by the network's names (see `live_states`); what is
                merged is taken out of them, so that each is in memory once.
            numbers: tensors that hold the number of a group plus 1, or 0.
            groups: as many as are numbered.

        Raises:
            UsageError: nothing that is merged is in the network.
        """
        import torch

        self.network, self.models, self.groups = network, len(states), tuple(groups)
        network.requires_grad_(False)
        self._parts = []
        places = {**dict(network.named_buffers()), **dict(network.named_parameters())}
        for name, live in places.items():
            given = numbers.get(name)
            if given is None or not live.is_floating_point() or not bool(given.any()):
                continue
            self._parts.append(_part(live, [state.pop(name) for state in states], given))
            live.requires_grad_(True)
        if not self._parts:
            raise UsageError(
                "nothing that is merged has the name of a tensor of the network. Pass the module "
                "that the anchor was saved from."
            )
        make_norms_affine(network)
        self._device = next(iter(places.values())).device
        self._row = torch.zeros(1, self.models, dtype=torch.float64)
        self._row[0, 0] = 1.0

    def write(self, rows: Tensor) -> None:
        """Make the network's weights, with a row of weights for each group.

        Args:
            rows: (groups, models); each sums to 1.
        """
        import torch

        table = torch.cat([self._row, rows.detach().cpu().double()])
        with torch.no_grad():
            for part in self._parts:
                part.live.copy_(part.base)
                for i, delta in enumerate(part.deltas, start=1):
                    if delta is None:
                        continue
                    if isinstance(part.group, int):
                        part.live.add_(delta, alpha=float(table[part.group, i]))
                    else:
                        share = table[:, i].to(delta)[part.group]
                        part.live.addcmul_(delta, share)

    def gradients(self) -> Tensor:
        """dL/dH of the backward pass that was run, (groups, models); forgets it.

        The anchor's column is 0: its weight is what the donors leave.
        """
        import torch

        found = torch.zeros(len(self.groups) + 1, self.models, dtype=torch.float64)
        for part in self._parts:
            slope = part.live.grad
            if slope is None:
                continue
            for i, delta in enumerate(part.deltas, start=1):
                if delta is None:
                    continue
                if isinstance(part.group, int):
                    # in chunks of float32 sums, added in double precision
                    product = torch.dot(slope.flatten(), delta.flatten())
                    found[part.group, i] += product.double().cpu()
                else:
                    products = (slope * delta).flatten().double().cpu()
                    found[:, i].index_add_(0, part.group.flatten().cpu(), products)
            part.live.grad = None
        return found[1:]


def _part(live: Tensor, given: Sequence[Tensor], numbers: Tensor) -> _Part:
    base, *others = (tensor.to(live) for tensor in given)
    deltas = []
    for other in others:
        delta = other - base
        deltas.append(delta if bool(delta.any()) else None)
    numbers = numbers.round().long().to(live.device)
    first = int(numbers.flatten()[0])
    group = first if bool((numbers == first).all()) else numbers
    return _Part(live, base, tuple(deltas), group)


def make_norms_affine(network: torch.nn.Module) -> None:
    """Let batch norms compute in a form that has gradients for their running statistics.

    torch's own gives none for them.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.forward = types.MethodType(_affine_norm, module)  # type: ignore[method-assign]


def _affine_norm(norm: Any, values: Tensor) -> Tensor:
    """Batch norm in evaluation mode, as a scale and a shift of each channel."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    shape = (1, -1, *[1] * (values.ndim - 2))
    made: Tensor = values * scale.view(shape) + shift.view(shape)
    return made
