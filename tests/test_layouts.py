"""How training code lays out its files: copies, wrappers, parts in one file or in several."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clients import client, files_of, lines
from deeplabs import Values, save, trained
from hub import TestHub
from safetensors.numpy import load_file

import lwmm_hub as lw
from lwmm_hub.errors import CheckpointError, LwmmError, ModelReferenceError, ResolveError
from lwmm_hub.recipe import recipe_of, write_recipe
from lwmm_hub.reference import ModelReference


def tensors(values: Values, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + key: torch.from_numpy(value) for key, value in values.items()}


def opened(path: Path | str) -> lw.Checkpoint:
    return lw.resolve(ModelReference.parse(str(path)))


# ------------------------------------------------------------------------------ wrappers and parts


def fada(seed: int, prefix: str = "", frozen: bool = False) -> dict[str, Any]:
    values = trained(seed)
    backbone = {
        f"{prefix}backbone.{key}": torch.from_numpy(value)
        for key, value in values.items()
        if "conv2d_list" not in key and not (frozen and key.endswith("num_batches_tracked"))
    }
    head = {
        prefix + key.removeprefix("layer6."): torch.from_numpy(value)
        for key, value in values.items()
        if key.startswith("layer6.")
    }
    discriminator = {"D.0.weight": torch.zeros(4, 19, 3, 3)}
    return {
        "iteration": 15000,
        "feature_extractor": backbone,
        "classifier": head,
        "model_D": discriminator,
        "optimizer_fea": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
    }


def maxsquare(seed: int, prefix: str = "module.") -> dict[str, Any]:
    return {
        "epoch": 3,
        "iteration": 90000,
        "state_dict": tensors(trained(seed), prefix),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []},
        "best_MIou": 0.43,
    }


def glc(seed: int) -> dict[str, Any]:
    values = {k: v for k, v in trained(seed).items() if "conv2d_list" not in k}
    own = np.random.default_rng(seed)
    return {
        "epoch": 9,
        "model_state_dict": tensors(values, "backbone_layer.")
        | {
            "feat_embed_layer.bottleneck.weight": torch.from_numpy(own.normal(size=(8, 32))),
            "class_layer.fc.weight_g": torch.ones(5, 1),
            "class_layer.fc.weight_v": torch.ones(5, 8),
        },
    }


LAYOUTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "MaxSquare": maxsquare,
    "MaxSquare on one GPU": lambda seed: maxsquare(seed, ""),
    "FADA": fada,
    "FADA, distributed": lambda seed: fada(seed, "module."),
    "FADA, frozen": lambda seed: fada(seed, frozen=True),
    "GLC": glc,
}


def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {path: tree}
    found = {}
    for key, value in tree.items() if isinstance(tree, dict) else ():
        found |= leaves(value, (*path, str(key)))
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read_merged_and_written_back(name: str, tmp_path: Path) -> None:
    paths = []
    for seed in (1, 2):
        paths.append(tmp_path / f"{seed}.pth")
        torch.save(LAYOUTS[name](seed), paths[-1])
    result = lw.merge(*paths, output=tmp_path / "merged", output_format="pth")
    assert any(t.name == "stages.3.blocks.0.conv2.weight" for t in result.plan.merged)
    assert not any("D.0" in t.key or "optimizer" in t.key for t in result.plan.merged)
    before = leaves(torch.load(paths[0]))
    after = leaves(torch.load(tmp_path / "merged" / "model.pth"))
    apart = ("optimizer", "model_D")
    assert list(after) == [path for path in before if not path[0].startswith(apart)]
    assert {p: (t.shape, t.dtype) for p, t in after.items()} == {
        p: (t.shape, t.dtype) for p, t in before.items() if p in after
    }
    again = lw.merge(tmp_path / "merged" / "model.pth", paths[1], output=tmp_path / "again")
    assert len(again.plan.merged) == len(result.plan.merged)
    merged = load_file(tmp_path / "again" / "model.safetensors")
    assert list(opened(paths[0]).entries) == [*sorted(merged, key=list(again_keys(paths[0])).index)]


def again_keys(path: Path) -> list[str]:
    return list(opened(path).entries)


def test_advent_and_fada_merge_in_both_directions_with_a_warning(tmp_path: Path) -> None:
    advent = save(trained(1), tmp_path / "advent.pth")
    torch.save(fada(2, "module.", frozen=True), tmp_path / "fada.pth")
    for pair in ((advent, tmp_path / "fada.pth"), (tmp_path / "fada.pth", advent)):
        plan = lw.plan(*pair)
        assert any("FADA" in w and "AdvEnt" in w for w in plan.warnings)
        assert sum("conv2d_list" in t.key for t in plan.merged) == 8


# ------------------------------------------------------------------------------------------ copies


def copies(*names: str, extra: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for seed, name in enumerate(names):
        values = {k: v for k, v in trained(seed).items() if "conv2d_list" not in k}
        found |= tensors(values, f"{name}backbone.")
        found[f"{name}decode_head.conv_seg.weight"] = torch.ones(19, 8, 1, 1)
    return found | dict.fromkeys(extra, torch.ones(2, 2))


def written(path: Path, *names: str, extra: tuple[str, ...] = ()) -> Path:
    torch.save({"meta": {}, "state_dict": copies(*names, extra=extra)}, path)
    return path


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (("model.", "ema_model.", "imnet_model."), "model."),
        (("model.", "ema_model."), "model."),
        (("model.", "imnet_model."), "model."),
        (("model.",), "model."),
        (("ema_model.", "imnet_model."), "ema_model."),
        (("ema_model.",), "ema_model."),
        (("",), ""),
    ],
)
def test_the_student_is_taken_else_the_teacher(
    tmp_path: Path, names: tuple[str, ...], prefix: str
) -> None:
    model = opened(written(tmp_path / "a.pth", *names))
    assert model.prefix == prefix
    assert next(iter(model.entries)) == "backbone.conv1.weight"
    assert len(model.entries) == len(copies(""))
    assert len(model.ignored) == len(copies("")) * (len(names) - 1)
    teacher = [w for w in model.warnings if "teacher" in w]
    assert bool(teacher) == (prefix == "ema_model.")


def test_a_teacher_in_its_own_file_opens_either_way(tmp_path: Path) -> None:
    torch.save({"model": copies("ema_model.")}, tmp_path / "model_final_teacher.pth")
    torch.save({"model": copies("")}, tmp_path / "model_final.pth")
    plain = opened(tmp_path / "model_final_teacher.pth")
    named = opened(f"{tmp_path / 'model_final_teacher.pth'}?weights=ema")
    assert list(plain.entries) == list(named.entries) == list(copies(""))
    assert named.warnings == ()
    plan = lw.plan(tmp_path / "model_final.pth", tmp_path / "model_final_teacher.pth")
    assert len(plan.merged) == sum(t.is_floating_point() for t in copies("").values())


def test_the_frozen_copy_alone_is_no_model_unless_it_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pth", "imnet_model.")
    with pytest.raises(CheckpointError, match=r"no 'student' weights. It has: imagenet"):
        opened(path)
    assert opened(f"{path}?weights=imagenet").prefix == "imnet_model."


def test_prefixes_are_anchored(tmp_path: Path) -> None:
    extra = ("mic.teacher.ema_model.backbone.x.weight", "project.0.weight", "submodel.y.weight")
    model = opened(written(tmp_path / "a.pth", "model.", "ema_model.", extra=extra))
    assert set(extra) <= set(model.ignored)
    assert not any("x.weight" in key or "y.weight" in key for key in model.entries)
    own = opened(written(tmp_path / "b.pth", "net.model.", extra=("submodel.y.weight",)))
    assert "net.model.backbone.conv1.weight" in own.entries


# --------------------------------------------------------------------------- CoNMix, in three files


def conmix(folder: Path, seed: int, stage: str, prefix: str = "module.") -> None:
    values = {k: v for k, v in trained(seed).items() if "conv2d_list" not in k}
    own = np.random.default_rng(0)
    bottleneck = {
        "bn.weight": np.ones(8, np.float32),
        "bottleneck.weight": own.normal(size=(8, 32)).astype(np.float32),
    }
    classifier = {"fc.weight_g": np.ones((5, 1), np.float32),
                  "fc.weight_v": own.normal(size=(5, 8)).astype(np.float32)}  # fmt: skip
    folder.mkdir(exist_ok=True)
    for part, content in (("F", values), ("B", bottleneck), ("C", classifier)):
        torch.save(tensors(content, prefix), folder / f"{stage}_{part}.pt")


def test_a_network_in_three_files_is_one_model(tmp_path: Path) -> None:
    conmix(tmp_path / "a", 1, "source")
    conmix(tmp_path / "a", 2, "target")
    conmix(tmp_path / "b", 3, "source", prefix="")
    both, alone = opened(tmp_path / "a"), opened(tmp_path / "b")
    assert list(both.entries) == list(alone.entries)
    assert both.files == ("target_F.pt", "target_B.pt", "target_C.pt")
    assert (both.reference.stage, alone.reference.stage) == ("target", "source")
    assert "?stage=source" in both.warnings[0]
    assert "source network is taken" in alone.warnings[0]
    named = opened(f"{tmp_path / 'a'}?stage=source")
    assert named.files == ("source_F.pt", "source_B.pt", "source_C.pt")
    assert named.warnings == ()
    with pytest.raises(ResolveError, match="has no target network"):
        opened(f"{tmp_path / 'b'}?stage=target")
    with pytest.raises(ResolveError, match="files of a folder"):
        opened(f"{tmp_path / 'b' / 'source_F.pt'}?stage=source")
    with pytest.raises(ModelReferenceError, match="Choose one of source, target"):
        ModelReference.parse("org/name?stage=middle")


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_three_files_come_back_as_three_files(tmp_path: Path, prefix: str) -> None:
    conmix(tmp_path / "a", 1, "target", prefix)
    conmix(tmp_path / "b", 2, "target")
    output = tmp_path / "merged"
    result = lw.merge(tmp_path / "a", tmp_path / "b", output=output, output_format="pth")
    assert set(result.files) == {"target_F.pt", "target_B.pt", "target_C.pt"}
    assert not list(output.glob("*.safetensors"))
    for part in "FBC":
        before = torch.load(tmp_path / "a" / f"target_{part}.pt")
        after = torch.load(output / f"target_{part}.pt")
        assert list(after) == list(before)
    kept = {key for key, why in result.plan.kept.items() if "weight norm" in why}
    assert kept == {"C/fc.weight_g", "C/fc.weight_v"}
    again = lw.merge(output, tmp_path / "b", output=tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == set(opened(output).entries)
    assert len(again.plan.merged) == len(result.plan.merged)


def test_recipes_name_the_stage(tmp_path: Path) -> None:
    conmix(tmp_path / "a", 1, "source")
    conmix(tmp_path / "a", 2, "target")
    pair = f"{tmp_path / 'a'}?stage=source", tmp_path / "a"
    first = lw.merge(*pair, output=tmp_path / "first")
    assert [m.stage for m in first.plan.models] == ["source", "target"]
    again = lw.merge_recipe(tmp_path / "first" / "lwmm_recipe.yaml", output=tmp_path / "again")
    assert again.files == first.files
    again = lw.merge(lw.MergePlan.from_dict(first.plan.to_dict()), output=tmp_path / "third")
    assert again.files == first.files
    recipe = recipe_of(first.plan, public=True)
    text = write_recipe(recipe, "a test")
    assert "stage: source" in text
    assert str(tmp_path) not in text
    (tmp_path / "public.yaml").write_text(text)
    labels = [m.label for m in first.plan.models]
    again = lw.merge_recipe(
        tmp_path / "public.yaml",
        output=tmp_path / "fourth",
        parents=dict.fromkeys(labels, str(tmp_path / "a")),
    )
    assert again.files == first.files


def test_parts_with_and_without_a_prefix_lose_no_name(tmp_path: Path) -> None:
    conmix(tmp_path / "a", 1, "source")
    conmix(tmp_path / "b", 1, "source", prefix="")
    (tmp_path / "a" / "source_C.pt").write_bytes((tmp_path / "b" / "source_C.pt").read_bytes())
    model = opened(tmp_path / "a")
    assert model.prefix == ""
    assert "F/module.conv1.weight" in model.entries
    assert "C/fc.weight_g" in model.entries
    with pytest.raises(LwmmError):
        lw.resolve(ModelReference.parse(f"{tmp_path / 'a'}?stage=target"))


def test_three_files_on_the_hub_are_one_model(hub: TestHub, tmp_path: Path) -> None:
    conmix(tmp_path / "a", 1, "source")
    conmix(tmp_path / "a", 2, "target")
    conmix(tmp_path / "b", 3, "source")
    hub.create_repo("org/conmix", files_of(tmp_path / "a"))
    local = f"{tmp_path / 'b'}?stage=source"
    output = tmp_path / "out"
    with client(hub, tmp_path / "home", tmp_path / "work") as run:
        planned = run("plan", "org/conmix?stage=source", local, "--json")
        models = json.loads(planned.out)["models"]
        assert [m["stage"] for m in models] == ["source", "source"]
        assert lines(hub, "GET /org/conmix/resolve/")
        assert not any("target" in line for line in lines(hub, "GET /org/conmix/resolve/"))
        assert run("merge", "org/conmix", local, "-o", output).code == 0
        again = tmp_path / "again"
        assert run("merge", "--recipe", output / "lwmm_recipe.yaml", "-o", again).code == 0
    lw.merge(tmp_path / "a", local, output=tmp_path / "here")
    merged = (output / "model.safetensors").read_bytes()
    assert merged == (tmp_path / "here" / "model.safetensors").read_bytes()
    assert merged == (again / "model.safetensors").read_bytes()
    assert "?stage=target" in (output / "lwmm_recipe.yaml").read_text()


def test_a_folder_of_three_files_is_overwritten_and_verified_like_any_other(tmp_path: Path) -> None:
    conmix(tmp_path / "a", 1, "target")
    conmix(tmp_path / "b", 2, "target")
    pair, output = (tmp_path / "a", tmp_path / "b"), tmp_path / "merged"
    first = lw.merge(*pair, output=output, output_format="pth")
    again = lw.merge(*pair, output=output, output_format="pth", overwrite=True)
    assert again.files == first.files
    assert dict(lw.verify(output).files) == dict(first.files)
