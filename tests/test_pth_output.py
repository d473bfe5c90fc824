"""`--output-format pth`: the merge in the nesting and under the prefixes of the anchor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from enumerators import TINY, ancestor, finetuned, spell_nvlabs, write_pth
from safetensors.torch import load_file

import lwmm_hub as lw

START = ancestor(TINY, seed=0)


def model(path: Path, seed: int, **wrapping: Any) -> Path:
    return write_pth(path, spell_nvlabs(finetuned(START, seed), TINY), **wrapping)


@pytest.mark.parametrize(
    "wrapping",
    [
        {},
        {"wrapper": "state_dict"},
        {"wrapper": "model", "prefix": "module."},
        {"wrapper": "state_dict", "legacy": True},
    ],
)
def test_a_pth_anchor_gets_its_nesting_and_prefixes_back(
    tmp_path: Path, wrapping: dict[str, Any]
) -> None:
    anchor = model(tmp_path / "anchor.pth", 1, **wrapping)
    donor = model(tmp_path / "donor.pth", 2)
    plain = lw.merge(anchor, donor, output=tmp_path / "plain")
    as_pth = lw.merge(anchor, donor, output=tmp_path / "pth", output_format="pth")
    assert list(as_pth.files) == ["model.pth"]
    saved = torch.load(tmp_path / "pth" / "model.pth", weights_only=True)
    original = torch.load(anchor, weights_only=True)
    if "wrapper" in wrapping:
        saved, original = saved[wrapping["wrapper"]], original[wrapping["wrapper"]]
    assert list(saved) == list(original), "same keys in the same order"
    merged = load_file(plain.folder / "model.safetensors")
    prefix = wrapping.get("prefix", "")
    assert all(torch.equal(saved[prefix + key], tensor) for key, tensor in merged.items())
    assert not list(tmp_path.glob("pth/*.safetensors"))
    lw.verify(tmp_path / "pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_that_are_gathered_make_no_file_of_the_model(tmp_path: Path, legacy: bool) -> None:
    """A transposed tensor is gathered into a temporary file, which neither plan nor card names."""
    anchor = model(tmp_path / "anchor.pth", 1, legacy=legacy)
    state = torch.load(anchor, weights_only=True)
    key = next(key for key, tensor in state.items() if tensor.dim() == 2)
    state[key] = state[key].t().contiguous().t()
    torch.save(state, anchor, _use_new_zipfile_serialization=not legacy)
    donor = model(tmp_path / "donor.pth", 2)
    assert lw.resolve(str(anchor)).files == ("anchor.pth",)
    result = lw.merge(anchor, donor, output=tmp_path / "out")
    assert result.plan.models[0].files == ("anchor.pth",)
    assert list(result.plan.models[0].sha256) == ["anchor.pth"]
    assert "unpacked" not in (result.folder / "README.md").read_text(encoding="utf-8")


def test_only_the_students_copy_is_merged_and_written(tmp_path: Path) -> None:
    values = spell_nvlabs(finetuned(START, 1), TINY)
    copies = {
        f"{copy}{key}": np.asarray(value + shift)
        for copy, shift in (("model.", 0), ("ema_model.", 1), ("imnet_model.", 2))
        for key, value in values.items()
    }
    anchor = write_pth(tmp_path / "daformer.pth", copies, wrapper="state_dict")
    donor = model(tmp_path / "donor.pth", 2)
    result = lw.merge(anchor, donor, output=tmp_path / "out", output_format="pth")
    saved = torch.load(result.folder / "model.pth", weights_only=True)["state_dict"]
    assert set(saved) == {f"model.{key}" for key in values}
    ema = lw.resolve(f"{anchor}?weights=ema")
    assert set(ema.entries) == set(values)


def test_a_merge_written_as_pth_is_a_parent_again(tmp_path: Path) -> None:
    anchor, donor = model(tmp_path / "a.pth", 1), model(tmp_path / "b.pth", 2)
    first = lw.merge(anchor, donor, output=tmp_path / "first", output_format="pth")
    again = lw.merge(first.folder, donor, output=tmp_path / "second")
    assert len(again.plan.merged) == len(first.plan.merged)


def test_a_checkpoint_of_lightning_merges_as_the_same_weights_in_a_pth_file(
    tmp_path: Path,
) -> None:
    values = [spell_nvlabs(finetuned(START, seed), TINY) for seed in (1, 2)]
    merged = []
    for suffix in (".pth", ".ckpt"):
        files = [
            write_pth(tmp_path / f"{name}{suffix}", own, wrapper="state_dict")
            for name, own in zip(("city", "rain"), values, strict=True)
        ]
        result = lw.merge(*files, output=tmp_path / f"out{suffix}")
        assert [m.label for m in result.plan.models] == ["city", "rain"]
        merged.append(load_file(result.folder / "model.safetensors"))
    assert merged[0].keys() == merged[1].keys() == values[0].keys()
    assert all(torch.equal(merged[0][key], merged[1][key]) for key in merged[0])
