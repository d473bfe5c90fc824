"""Weights that are no numbers to average are refused, though a file of any name may hold them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lwmm_hub as lw
from lwmm_hub.errors import CheckpointError

Tensors = dict[str, torch.Tensor]


def network(seed: int = 0) -> Tensors:
    torch.manual_seed(seed)
    names = ("backbone.conv.weight", "backbone.q.weight", "head.weight")
    return {name: torch.randn(8, 8) for name in names}


def codes(dtype: torch.dtype, **beside: torch.Tensor) -> Tensors:
    """The network with the codes of one weight, and what stands beside them."""
    coded = {"backbone.q.weight": torch.arange(64.0).reshape(8, 8).to(dtype)}
    return network() | coded | {f"backbone.q.{name}": value for name, value in beside.items()}


SCALE = torch.rand(8, 1)
REFUSED: dict[str, tuple[Callable[[], Tensors], tuple[str, ...]]] = {
    "float8 with a scale": (
        lambda: codes(torch.float8_e4m3fn, weight_scale_inv=SCALE),
        ("one is quantised", "backbone.q.weight", "Name the model it was made from"),
    ),
    "float8 alone": (
        lambda: codes(torch.float8_e5m2),
        ("one is quantised", "backbone.q.weight", "Name the model it was made from"),
    ),
    "int8 with a scale": (
        lambda: codes(torch.int8, scale=SCALE),
        ("one is quantised", "backbone.q.weight"),
    ),
    "uint8 with a zero point": (
        lambda: codes(torch.uint8, zero_point=SCALE),
        ("one is quantised", "backbone.q.weight"),
    ),
    "int8 at the top": (
        lambda: network() | {"weight": torch.ones(2, 2, dtype=torch.int8), "scale": SCALE},
        ("one is quantised", "'weight'"),
    ),
    "a scale whose codes have another name": (
        lambda: network() | {"backbone.q.SCB": SCALE},
        ("one is quantised", "backbone.q.SCB"),
    ),
    "SAMed": (
        lambda: network() | {"image_encoder.blocks.0.attn.qkv.linear_a_q.weight": SCALE},
        ("LoRA adapter", "linear_a_q"),
    ),
    "SAMed alone": (lambda: network() | {"w_a_000": SCALE, "w_b_000": -SCALE}, ("LoRA", "w_a_000")),
    "peft": (
        lambda: {
            "base.q.base_layer.weight": torch.ones(8, 8),
            "base.q.lora_A.default.weight": torch.ones(2, 8),
            "base.q.lora_B.default.weight": torch.ones(8, 2),
        },
        ("one holds a LoRA adapter", "base.q.lora_A.default.weight", "merge_and_unload"),
    ),
    "loralib": (
        lambda: network() | {"backbone.q.lora_B": torch.ones(8, 2)},
        ("one holds a LoRA adapter", "backbone.q.lora_B", "merge it into its base model first"),
    ),
    "an embedding's": (
        lambda: network() | {"backbone.q.lora_embedding_A.default": torch.ones(2, 8)},
        ("one holds a LoRA adapter", "lora_embedding_A"),
    ),
    "LyCORIS": (
        lambda: network() | {"backbone.q.hada_w1_a": torch.ones(8, 2)},
        ("one holds a LoRA adapter", "hada_w1_a"),
    ),
}


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("row", REFUSED)
def test_codes_and_adapters_are_refused_in_either_place(
    row: str, ending: str, tmp_path: Path
) -> None:
    make, words = REFUSED[row]
    one, other = tmp_path / f"one{ending}", tmp_path / "other.safetensors"
    write: Callable[[Tensors, Path], object] = save_file if "safe" in ending else torch.save
    write(make(), one)
    save_file(network(1), other)
    for models in ((one, other), (other, one)):
        with pytest.raises(CheckpointError) as caught:
            lw.merge(*models, output=tmp_path / "merged", allow_unrelated=True)
        assert all(word in str(caught.value) for word in words)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "beside",
    [
        {"backbone.q.scale": torch.ones(8)},  # a layer scale
        {"backbone.index.weight": torch.ones(2, 2, dtype=torch.int64)},  # nothing scales it
        {"backbone.exploratory_A.weight": torch.ones(2, 2), "backbone.lora_head.weight": SCALE},
    ],
)
def test_what_looks_a_little_like_it_is_merged(beside: Tensors, tmp_path: Path) -> None:
    for i in (0, 1):
        save_file(network() | beside, tmp_path / f"{i}.safetensors")
    plan = lw.plan(tmp_path / "0.safetensors", tmp_path / "1.safetensors")
    assert {tensor.key for tensor in plan.merged} >= network().keys()
