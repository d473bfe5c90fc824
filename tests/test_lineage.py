"""A common pre-training is proven, plausible or refuted, and the plan says by what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from deeplabs import Values, trained
from safetensors.torch import save_file
from torch.serialization import set_crc32_options

import lwmm_hub as lw
from lwmm_hub.display import plan_rows
from lwmm_hub.errors import UnrelatedModelsError


def backbone(values: Values, prefix: str) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}backbone.{key}": torch.from_numpy(value)
        for key, value in values.items()
        if "conv2d_list" not in key
    }


def ancestor(seed: int) -> Values:
    """What `trained(..., ancestor=seed)` starts from: nearly enough, for a frozen copy."""
    return trained(-1, ancestor=seed)


def checkpoint(
    path: Path, seed: int, start: int = 0, copy: Values | None = None, dtype: str = "float32"
) -> Path:
    """A training checkpoint: the student, and a frozen copy of what it started from."""
    state = backbone(trained(seed, start), "model.")
    state["model.decode_head.conv_seg.weight"] = torch.ones(19, 8, 1, 1)
    if copy is not None:
        state |= backbone(copy, "imnet_model.")
    cast = {
        key: value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        for key, value in state.items()
    }
    torch.save({"state_dict": cast}, path)
    return path


def changed(values: Values) -> Values:
    """The same but for one bit of one tensor of the backbone."""
    other = dict(values)
    weight = other["layer4.0.conv2.weight"].copy()
    weight.view(np.uint32).flat[7] ^= 1
    other["layer4.0.conv2.weight"] = weight
    return other


def verdicts(plan: lw.MergePlan) -> list[tuple[int, str]]:
    return [(each.model, each.verdict) for each in plan.lineage]


@pytest.fixture
def _without_checksums() -> Iterator[None]:
    set_crc32_options(False)
    yield
    set_crc32_options(True)


def test_equal_copies_prove_it_without_a_weight_being_read(tmp_path: Path) -> None:
    pair = [checkpoint(tmp_path / f"{i}.pth", i, copy=ancestor(0)) for i in (1, 2)]
    plan = lw.plan(*pair)
    assert verdicts(plan) == [(1, "proven")]
    assert "checksums of all 85 shared backbone tensors" in plan.lineage[0].why
    assert plan.to_dict()["lineage"][0]["verdict"] == "proven"
    assert lw.MergePlan.from_dict(plan.to_dict()) == plan
    assert "Same pre-training, donor 1: proven" in str(plan)
    assert "Same pre-training, donor 1: proven" in plan._repr_html_()
    assert any(row.startswith("lineage\t1\tproven") for row in plan_rows(plan.to_dict()))


@pytest.mark.usefixtures("_without_checksums")
def test_checksums_that_are_not_there_prove_nothing(tmp_path: Path) -> None:
    copies = (ancestor(0), ancestor(0), changed(ancestor(0)))
    paths = [checkpoint(tmp_path / f"{i}.pth", i, copy=c) for i, c in enumerate(copies)]
    assert lw.plan(*paths).lineage == ()
    plan = lw.plan(*paths, check_weights=True)
    assert verdicts(plan) == [(1, "proven"), (2, "refuted")]
    assert "tensors, bit for bit" in plan.lineage[0].why


@pytest.mark.parametrize("what", ["norms", "zeros"])
def test_what_any_two_networks_have_in_common_proves_nothing(what: str, tmp_path: Path) -> None:
    """Copies trimmed to norms as they are initialised, or zeroed: equal whatever came before."""
    bare: Values = {}
    for key, value in ancestor(0).items():
        if value.ndim == 1:
            bare[key] = np.full_like(value, key.endswith(("weight", "var")))
        elif what == "zeros":
            bare[key] = np.zeros_like(value)
    pair = [checkpoint(tmp_path / f"{i}.pth", i, copy=bare) for i in (1, 2)]
    assert lw.plan(*pair).lineage == ()
    assert verdicts(lw.plan(*pair, check_weights=True)) == [(1, "plausible")]


def test_copies_that_differ_refute_it(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "a.pth", 1, copy=ancestor(0))
    for name, copy in (("bit", changed(ancestor(0))), ("other", ancestor(5))):
        other = checkpoint(tmp_path / f"{name}.pth", 2, copy=copy)
        for check in (False, True):
            plan = lw.plan(one, other, check_weights=check)
            assert verdicts(plan) == [(1, "refuted")]
            assert any("do not share their pre-training" in w for w in plan.warnings)


def test_the_other_model_may_be_the_pre_training_itself(tmp_path: Path) -> None:
    start = ancestor(0)
    path = checkpoint(tmp_path / "trained.pth", 1, copy=start)
    torch.save(backbone(start, "") | {"fc.weight": torch.ones(5, 32)}, tmp_path / "start.pth")
    save_file(backbone(start, "resnet."), tmp_path / "start.safetensors")
    for other in ("start.pth", "start.safetensors"):
        for pair in ((path, tmp_path / other), (tmp_path / other, path)):
            assert verdicts(lw.plan(*pair, check_weights=True)) == [(1, "proven")]
            headers = verdicts(lw.plan(*pair))
            assert headers == ([(1, "proven")] if other.endswith(".pth") else [])
    torch.save(backbone(changed(start), ""), tmp_path / "near.pth")
    plan = lw.plan(path, tmp_path / "near.pth", check_weights=True)
    assert verdicts(plan) == [(1, "plausible")]


def test_related_weights_are_plausible_and_unrelated_ones_refute(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "a.pth", 1)
    other = checkpoint(tmp_path / "b.pth", 2)
    stranger = checkpoint(tmp_path / "c.pth", 3, start=9)
    assert lw.plan(one, other).lineage == ()
    assert verdicts(lw.plan(one, other, check_weights=True)) == [(1, "plausible")]
    with pytest.raises(UnrelatedModelsError):
        lw.plan(one, stranger, check_weights=True)
    plan = lw.plan(one, other, stranger, check_weights=True, allow_unrelated=True)
    assert verdicts(plan) == [(1, "plausible"), (2, "refuted")]


def test_a_merge_records_it_on_its_card_and_in_its_manifest(tmp_path: Path) -> None:
    pair = [checkpoint(tmp_path / f"{i}.pth", i, copy=ancestor(0)) for i in (1, 2)]
    result = lw.merge(*pair, output=tmp_path / "merged")
    assert verdicts(result.plan) == [(1, "proven")]
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "Made from the same pre-training as the anchor:" in card
    assert "proven (the copies of their pre-training in both files are equal" in card
    manifest = (tmp_path / "merged" / "lwmm_manifest.json").read_text()
    assert '"lineage"' in manifest
    assert str(tmp_path) not in card + manifest


def test_copies_of_another_precision_are_compared_by_value(tmp_path: Path) -> None:
    half = {k: v.astype(np.float16).astype(v.dtype) for k, v in ancestor(0).items()}
    one = checkpoint(tmp_path / "a.pth", 1, copy=half)
    other = checkpoint(tmp_path / "b.pth", 2, copy=half, dtype="float16")
    assert lw.plan(one, other).lineage == ()
    assert verdicts(lw.plan(one, other, check_weights=True)) == [(1, "proven")]
