"""A fused NVlabs spelling and the transformers folder of the same values compute the same logits.

NVlabs' forward pass is ours (`enumerators/nvlabs_forward.py`), the other one is transformers'. They
part by about 1e-5 at a scale of 1: NVlabs' norms have eps 1e-6, those of transformers 1e-5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from enumerators import (
    B0,
    TINY,
    SegformerSize,
    ancestor,
    fill,
    finetuned,
    segformer_nvlabs,
    spell_nvlabs,
    write_transformers_folder,
)

TOLERANCE = 1e-4  # absolute, for logits whose standard deviation is between 0.3 and 3
SIZES = pytest.mark.parametrize("size", [TINY, B0], ids=["tiny", "b0"])


def neutral_model(size: SegformerSize) -> dict[str, np.ndarray]:
    return finetuned(ancestor(size, seed=10), seed=11)


def random_pixels():
    import torch

    # Height and width differ, so that a transposed grid cannot go unnoticed.
    return torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))


def logits_of_transformers(folder: Path, pixels) -> np.ndarray:
    import torch
    from transformers import SegformerForSemanticSegmentation

    model = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(pixels).logits.numpy()


def logits_of_nvlabs(tensors: Mapping[str, np.ndarray], size: SegformerSize, pixels) -> np.ndarray:
    from enumerators.nvlabs_forward import nvlabs_logits

    return nvlabs_logits(tensors, size, pixels).numpy()


def swap_keys_and_values(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        key: np.concatenate(np.split(value, 2)[::-1]) if ".attn.kv." in key else value
        for key, value in tensors.items()
    }


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors on many threads wait for each other: 60 s instead of 1 s on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@SIZES
def test_nvlabs_and_transformers_agree_unless_keys_and_values_are_swapped(
    size: SegformerSize, tmp_path: Path
) -> None:
    neutral, pixels = neutral_model(size), random_pixels()
    expected = logits_of_transformers(write_transformers_folder(tmp_path, neutral, size), pixels)
    assert expected.shape == (2, size.num_classes, 24, 16)
    assert 0.3 < expected.std() < 3

    tensors = spell_nvlabs(neutral, size)
    assert np.abs(logits_of_nvlabs(tensors, size, pixels) - expected).max() < TOLERANCE

    swapped = logits_of_nvlabs(swap_keys_and_values(tensors), size, pixels)
    assert np.abs(swapped - expected).max() > 1000 * TOLERANCE


def test_conv_seg_is_dead_and_every_other_tensor_counts() -> None:
    """Changing any live tensor changes the logits: the agreement above speaks for all of them."""
    tensors, other = spell_nvlabs(neutral_model(TINY), TINY), fill(segformer_nvlabs(TINY), seed=12)
    pixels = random_pixels()
    before = logits_of_nvlabs(tensors, TINY, pixels)

    def has_no_effect(key: str) -> bool:
        changed = {**tensors, key: other[key]}
        return np.abs(logits_of_nvlabs(changed, TINY, pixels) - before).max() < TOLERANCE

    without_effect = [key for key in tensors if has_no_effect(key)]
    assert without_effect == [
        "decode_head.conv_seg.weight",
        "decode_head.conv_seg.bias",
        "decode_head.linear_fuse.bn.num_batches_tracked",
    ]
