"""A weight that is kept in parts (weight norm, spectral norm) is one thing: the anchor's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations, prune

import lwmm_hub as lw

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's old norms

Norm = Callable[[nn.Module], nn.Module]

# norm, what the warning calls it, the leaves of its module
NORMS: dict[str, tuple[Norm, str, set[str]]] = {
    "spectral": (
        parametrizations.spectral_norm,
        "(spectral norm)",
        {"parametrizations.weight.original", "parametrizations.weight.0._u",
         "parametrizations.weight.0._v", "bias"},
    ),
    "old spectral": (
        nn.utils.spectral_norm, "(spectral norm)", {"weight_orig", "weight_u", "weight_v", "bias"},
    ),
    "weight": (
        parametrizations.weight_norm,
        "(weight norm)",
        {"parametrizations.weight.original0", "parametrizations.weight.original1", "bias"},
    ),
    "old weight": (nn.utils.weight_norm, "(weight norm)", {"weight_g", "weight_v", "bias"}),
    "orthogonal": (
        parametrizations.orthogonal,
        "(parametrizations)",
        {"parametrizations.weight.original", "parametrizations.weight.0.base", "bias"},
    ),
}  # fmt: skip


class Net(nn.Module):
    """A backbone of two layers, one of them under a norm."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.backbone = nn.Linear(8, 8)
        self.fc = norm(nn.Linear(8, 8))


def trained(norm: Norm, seed: int) -> Net:
    """One start, other steps for each seed, and the buffers that belong to the weights."""
    torch.manual_seed(0)
    net = Net(norm)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape))
    for _ in range(20):
        net.fc(torch.randn(2, 8))
    return net.eval()


@pytest.mark.parametrize("row", NORMS)
def test_a_weight_under_a_norm_stays_the_anchors_as_a_whole(row: str, tmp_path: Path) -> None:
    norm, called, leaves = NORMS[row]
    nets = [trained(norm, seed) for seed in (1, 2)]
    for i, net in enumerate(nets):
        torch.save(net.state_dict(), tmp_path / f"{i}.pth")
    result = lw.merge(tmp_path / "0.pth", tmp_path / "1.pth", output=tmp_path / "out")
    assert {tensor.key for tensor in result.plan.merged} == {"backbone.weight", "backbone.bias"}
    there = {f"fc.{leaf}" for leaf in leaves & {k[3:] for k in nets[0].state_dict()}}
    assert result.plan.kept.keys() == there
    assert result.plan.unused[0].keys() == there
    (said,) = (text for text in result.warnings if called in text)
    assert said.startswith("fc keeps its weight")
    merged = Net(norm)
    merged.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    inputs = torch.randn(4, 8)
    assert torch.equal(merged.eval().fc(inputs), nets[0].fc(inputs))


@pytest.mark.parametrize("row", NORMS)
def test_a_bias_does_not_go_without_the_weight_that_the_donor_keeps_in_parts(
    row: str, tmp_path: Path
) -> None:
    norm, _, _ = NORMS[row]
    torch.save(trained(lambda module: module, 1).state_dict(), tmp_path / "0.pth")
    torch.save(trained(norm, 1).state_dict(), tmp_path / "1.pth")
    plan = lw.plan(tmp_path / "0.pth", tmp_path / "1.pth")
    assert {tensor.key for tensor in plan.merged} == {"backbone.weight", "backbone.bias"}
    assert "never averaged by its parts (1)" in plan.kept["fc.bias"]
    assert "never averaged by its parts" in plan.unused[0]["fc.bias"]


def test_weights_of_other_names_are_known_by_the_parts_beside_them(tmp_path: Path) -> None:
    def network() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        lstm = nn.utils.weight_norm(nn.LSTM(4, 4), "weight_hh_l0")
        pruned = prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)
        return {
            **{f"backbone.lstm.{key}": value for key, value in lstm.state_dict().items()},
            **{f"backbone.pruned.{key}": value for key, value in pruned.state_dict().items()},
            "backbone.gates.w_g": torch.randn(4, 4),
            "backbone.gates.w_v": torch.randn(4, 4),
        }

    for i in (0, 1):
        torch.save(network(), tmp_path / f"{i}.pth")
    plan = lw.plan(tmp_path / "0.pth", tmp_path / "1.pth")
    merged = {tensor.key.removeprefix("backbone.") for tensor in plan.merged}
    assert merged == {"pruned.weight_orig", "pruned.bias", "gates.w_g", "gates.w_v"}
    (said,) = (text for text in plan.warnings if "weight norm" in text)
    assert said.startswith("backbone.lstm keeps its weight")
