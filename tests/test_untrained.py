"""Branches that AdaptSegNet saves and never trained: known by their values, and not merged."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from deeplabs import Values, save, shapes, trained, untrained_branches
from safetensors.numpy import load_file

import lwmm_hub as lw

FLOATS = {key for key, shape in shapes().items() if shape}
NOISE = {key for key in FLOATS if re.search(r"conv2d_list\.[23]", key)}
LAYERS = ("auxiliary.branches.2", "auxiliary.branches.3", "head.branches.2", "head.branches.3")


def merged_keys(plan: lw.MergePlan) -> set[str]:
    return {tensor.key for tensor in plan.merged}


@pytest.fixture
def maxsquare(tmp_path: Path) -> Path:
    return save(trained(1), tmp_path / "maxsquare.pth")


@pytest.fixture
def adaptsegnet(tmp_path: Path) -> Path:
    return save(untrained_branches(trained(2), 2), tmp_path / "adaptsegnet.pth")


def test_names_alone_cannot_tell_and_the_plan_says_so(maxsquare: Path, adaptsegnet: Path) -> None:
    plan = lw.plan(adaptsegnet, maxsquare)
    assert merged_keys(plan) == FLOATS
    (warning,) = [w for w in plan.warnings if "untrained" in w]
    assert all(layer in warning for layer in LAYERS)
    assert "--check-weights" in warning


@pytest.mark.parametrize("anchor_is_untrained", [True, False])
def test_untrained_branches_stay_out_of_the_merge(
    maxsquare: Path, adaptsegnet: Path, tmp_path: Path, anchor_is_untrained: bool
) -> None:
    pair = (adaptsegnet, maxsquare) if anchor_is_untrained else (maxsquare, adaptsegnet)
    result = lw.merge(*pair, output=tmp_path / "merged")
    assert merged_keys(result.plan) == FLOATS - NOISE
    reason = "never trained: still normal(0, 0.01) as initialised, in adaptsegnet"
    assert {result.plan.kept[key] for key in NOISE} == {reason}
    assert {result.plan.unused[0][key] for key in NOISE} == {reason}
    assert set(result.plan.kept) | merged_keys(result.plan) == set(shapes())
    assert any("not merged: never trained" in w for w in result.plan.warnings)
    assert [r.verdict for r in result.plan.relatedness] == ["related", "related"]
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    own = untrained_branches(trained(2), 2) if anchor_is_untrained else trained(1)
    for key in NOISE:
        assert np.array_equal(merged[key], own[key])
    assert result.plan.models[1].kept_parts == LAYERS
    assert "head.branches.3" in (tmp_path / "merged" / "README.md").read_text()


def test_recipes_and_plans_that_were_decided_run_again_bit_for_bit(
    maxsquare: Path, adaptsegnet: Path, tmp_path: Path
) -> None:
    first = lw.merge(maxsquare, adaptsegnet, output=tmp_path / "first")
    again = lw.merge_recipe(tmp_path / "first" / "lwmm_recipe.yaml", output=tmp_path / "again")
    assert again.files == first.files
    plan = lw.MergePlan.from_dict(lw.plan(maxsquare, adaptsegnet, check_weights=True).to_dict())
    assert plan.merged == first.plan.merged
    third = lw.merge(plan, output=tmp_path / "third")
    assert third.files == first.files
    drafted = lw.merge(lw.plan(maxsquare, adaptsegnet), output=tmp_path / "fourth")
    assert drafted.files == first.files


def test_another_donor_still_gives_its_trained_branches(
    maxsquare: Path, adaptsegnet: Path, tmp_path: Path
) -> None:
    advent = save(trained(3), tmp_path / "advent.pth")
    plan = lw.plan(maxsquare, adaptsegnet, advent, check_weights=True)
    assert merged_keys(plan) == FLOATS
    for tensor in plan.merged:
        assert (tensor.sources[1] is None) == (tensor.key in NOISE)
        assert sum(tensor.weights) == pytest.approx(1)
        if tensor.key in NOISE:
            assert tensor.weights[1] == 0


def test_what_the_user_asks_for_is_done_with_a_warning(maxsquare: Path, adaptsegnet: Path) -> None:
    plan = lw.plan(maxsquare, adaptsegnet, check_weights=True, scope="all")
    assert merged_keys(plan) == FLOATS
    assert any("as asked" in w for w in plan.warnings)
    plan = lw.plan(maxsquare, adaptsegnet, check_weights=True, scope="backbone")
    assert not any("conv2d_list" in key for key in merged_keys(plan))


def almost(values: Values, change: str) -> Values:
    """Branches close to their initial values, but for one moment."""
    own = np.random.default_rng(5)
    changed = dict(values)
    for key in NOISE:
        if not key.endswith("weight"):
            continue
        shape = values[key].shape
        drawn = {
            "mean": lambda shape: own.normal(0.0015, 0.01, shape),
            "deviation": lambda shape: own.normal(0, 0.0108, shape),
            "tails": lambda shape: own.uniform(-0.01 * 3**0.5, 0.01 * 3**0.5, shape),
            "not a number": lambda shape: np.full(shape, np.inf),
        }[change](shape)
        changed[key] = drawn.astype(np.float32)
    return changed


@pytest.mark.parametrize("change", ["mean", "deviation", "tails", "not a number"])
def test_a_little_training_is_training(tmp_path: Path, maxsquare: Path, change: str) -> None:
    donor = save(almost(trained(2), change), tmp_path / "donor.pth")
    assert merged_keys(lw.plan(maxsquare, donor, check_weights=True)) == FLOATS


def test_the_test_of_moments_is_right_for_nearly_all_seeds(tmp_path: Path) -> None:
    """Four standard errors on each of three moments: a false alarm in thousands."""
    other = save(trained(1), tmp_path / "other.pth")
    found = 0
    for seed in range(25):
        donor = save(untrained_branches(trained(2), seed), tmp_path / f"{seed}.pth")
        plan = lw.plan(other, donor, check_weights=True)
        found += len(FLOATS - merged_keys(plan))
    assert found >= 25 * len(NOISE) - 2
