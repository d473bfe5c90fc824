"""Tensors that a `.pth` file holds once under several names stay one parameter of one layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lwmm_hub as lw

Tensors = dict[str, torch.Tensor]
START = {name: torch.randn(8, 8) for name in ("embed", "0", "1", "mid", "out")}


def trained(seed: int) -> Tensors:
    torch.manual_seed(seed)
    return {name: value + 0.2 * torch.randn(8, 8) for name, value in START.items()}


def language(seed: int, tied: bool = True) -> Tensors:
    """An embedding, a backbone, and an output layer that is the embedding again."""
    values = trained(seed)
    return {
        "embed.weight": values["embed"],
        "backbone.0.weight": values["0"],
        "backbone.1.weight": values["1"],
        "head.mid.weight": values["mid"],
        "head.out.weight": values["embed"] if tied else START["embed"] + values["out"] / 9,
    }


def saved(path: Path, values: Tensors, legacy: bool = False) -> Path:
    torch.save(values, path, _use_new_zipfile_serialization=not legacy)
    return path


def weights(plan: lw.MergePlan) -> dict[str, tuple[int, tuple[float, ...]]]:
    return {tensor.key: (tensor.layer, tensor.weights) for tensor in plan.merged}


@pytest.mark.parametrize("legacy", [False, True])
def test_tied_weights_are_one_layer_that_of_their_last_use(legacy: bool, tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{i}.pth", language(i), legacy) for i in (0, 1)]
    result = lw.merge(*paths, output=tmp_path / "out")
    found = weights(result.plan)
    assert found["embed.weight"] == found["head.out.weight"] == (3, (1.0, 0.0))
    assert [layer.name for layer in result.plan.layers] == [
        "backbone.0", "backbone.1", "head.mid", "head.out"
    ]  # fmt: skip
    assert not any("one tensor" in text for text in result.warnings)
    merged = load_file(result.folder / "model.safetensors")
    assert torch.equal(merged["embed.weight"], merged["head.out.weight"])
    even = lw.merge(*paths, output=tmp_path / "even", schedule="isotropic")
    merged = load_file(even.folder / "model.safetensors")
    assert torch.equal(merged["embed.weight"], merged["head.out.weight"])
    mean = (language(0)["embed.weight"] + language(1)["embed.weight"]) / 2
    torch.testing.assert_close(merged["embed.weight"], mean)


def test_a_pth_file_ties_again_what_its_anchor_ties(tmp_path: Path) -> None:
    paths = []
    for i in (0, 1):
        values = language(i)
        values["embed.weight"] = values["head.out.weight"] = values["embed.weight"].t()
        paths.append(saved(tmp_path / f"{i}.pth", values))
    result = lw.merge(*paths, output=tmp_path / "out", output_format="pth", schedule="isotropic")
    again = torch.load(result.folder / "model.pth", weights_only=True)
    assert again["embed.weight"].data_ptr() == again["head.out.weight"].data_ptr()
    assert len({tensor.data_ptr() for tensor in again.values()}) == 4
    assert list(again) == list(language(0))
    lw.verify(result.folder)


@pytest.mark.parametrize("dropped", ["embed.weight", "head.out.weight"])
def test_a_donor_of_safetensors_has_one_of_the_names_and_gives_it_to_both(
    dropped: str, tmp_path: Path
) -> None:
    donor = {key: value for key, value in language(1).items() if key != dropped}
    save_file(donor, tmp_path / "donor.safetensors")
    anchor = saved(tmp_path / "anchor.pth", language(0))
    plan = lw.plan(anchor, tmp_path / "donor.safetensors", schedule="isotropic")
    (there,) = {"embed.weight", "head.out.weight"} - {dropped}
    sources = {tensor.key: tensor.sources[1] for tensor in plan.merged}
    for key in ("embed.weight", "head.out.weight"):
        source = sources[key]
        assert source is not None
        assert source.key == there
    assert plan.kept == {}
    assert plan.unused == ({},)


def test_a_donor_with_two_values_gives_one_and_the_plan_says_so(tmp_path: Path) -> None:
    anchor = saved(tmp_path / "anchor.pth", language(0))
    donor = saved(tmp_path / "donor.pth", language(1, tied=False))
    result = lw.merge(anchor, donor, output=tmp_path / "out", schedule="isotropic")
    (said,) = (text for text in result.warnings if "one tensor of anchor" in text)
    assert said.startswith("embed.weight and head.out.weight are")
    assert "which is merged for both" in result.plan.unused[0]["embed.weight"]
    merged = load_file(result.folder / "model.safetensors")
    assert torch.equal(merged["embed.weight"], merged["head.out.weight"])
    untied = lw.plan(donor, anchor, schedule="isotropic")
    assert len({layer for layer, _ in weights(untied).values()}) == 5


def test_a_network_that_is_registered_twice_keeps_the_place_where_it_runs(tmp_path: Path) -> None:
    def network(seed: int) -> Tensors:
        values = trained(seed)
        inner = {"encoder.0.weight": values["0"], "encoder.1.weight": values["1"]}
        nested = {f"net.{key}": value for key, value in inner.items()}
        return {**nested, "net.head.weight": values["out"], **inner}

    plan = lw.plan(*(saved(tmp_path / f"{i}.pth", network(i)) for i in (0, 1)))
    assert [layer.name for layer in plan.layers] == ["net.encoder.0", "net.encoder.1", "net.head"]
    found = weights(plan)
    assert found["encoder.0.weight"] == found["net.encoder.0.weight"] == (0, (0.5, 0.5))


def test_what_is_never_averaged_under_one_name_is_not_under_the_other(tmp_path: Path) -> None:
    def network(seed: int) -> Tensors:
        values = language(seed)
        return values | {"head.norm.weight_v": values["head.mid.weight"]}

    plan = lw.plan(*(saved(tmp_path / f"{i}.pth", network(i)) for i in (0, 1)))
    assert plan.kept.keys() == {"head.mid.weight", "head.norm.weight_v"}


def test_views_of_other_shapes_and_empty_tensors_are_no_ties(tmp_path: Path) -> None:
    def network(seed: int) -> Tensors:
        values = language(seed, tied=False)
        whole = values["backbone.0.weight"]
        views = {"backbone.view.weight": whole[:4], "backbone.turned.weight": whole.t()}
        empty = {f"backbone.{name}.weight": torch.empty(0) for name in ("none", "nothing")}
        return values | views | empty

    plan = lw.plan(*(saved(tmp_path / f"{i}.pth", network(i)) for i in (0, 1)))
    assert len({layer for layer, _ in weights(plan).values()}) == 9
