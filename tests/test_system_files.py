"""Every system as the anchor of a merge: what comes out has its keys, its nesting, our numbers.

Tiny files with all that the training code saves beside the student: optimizers, moving averages,
discriminators, scores.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from enumerators import ancestor, finetuned, segformer_transformers_old, write_transformers_folder
from enumerators.systems.table import SYSTEMS, System
from enumerators.systems.values import MIT, Trained
from oracle import assert_within_rounding, in_backbone, merge_by_hand, read, unspell
from safetensors.numpy import load_file

import lwmm_hub as lw

FITTING = {
    "DAFormer": "HRDA",
    "HRDA": "EDAPS",
    "MIC": "PiPa(HRDA)",
    "MIC, own teacher": "DAFormer",
    "PiPa(DAFormer)": "DAFormer",
    "PiPa(HRDA)": "MIC, own teacher",
    "EDAPS": "HRDA",
    "EDAPS bottom-up": "EDAPS",
    "SegFormer": "DAFormer",
    "AdvEnt": "MinEnt",
    "MinEnt": "MaxSquare",
    "AdvEnt single": "AdvEnt",
    "AdvEnt, old torch": "MinEnt",
    "AdaptSegNet": "MaxSquare",
    "AdaptSegNet, old torch": "AdvEnt",
    "MaxSquare": "AdaptSegNet",
    "FADA": "FADA FrozenBN",
    "FADA FrozenBN": "FADA",
    "GLC": "GLC",
    "MIC-det": "MIC-det teacher",
    "MIC-det teacher": "MIC-det",
}


def write(system: System, folder: Path, name: str, seed: int) -> tuple[str, Trained]:
    """A whole file of a tiny run, and how to name the model in it."""
    run = system.run(seed, system.tiny)
    return str(system.save(folder, name, run)), run


def counts(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def flat(nested: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    """Path of keys -> tensor, in order."""
    rows: dict[tuple[str, ...], Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            rows |= {(key, *path): tensor for path, tensor in flat(value).items()}
        else:
            rows[(key,)] = value
    return rows


def expected_values(plan: lw.MergePlan, anchor: Trained, donor: Trained) -> dict[str, np.ndarray]:
    """The ramp of the paper over the plan's layers, in float64; all else is the anchor's."""
    last = len(plan.layers) - 1
    expected = {key: value.astype(np.float64) for key, value in anchor.values.items()}
    done: dict[str, int] = {}  # rows of a fused tensor, which comes once per part
    for tensor in plan.merged:
        share = 0.5 * (1 - tensor.layer / last)
        one, other = tensor.sources
        assert one is not None
        assert other is not None
        rows = tensor.shape[0]
        start = done.get(tensor.key, 0)
        done[tensor.key] = start + rows
        ours = anchor.values[one.key].astype(np.float64)[start : start + rows]
        theirs = donor.values[other.key]
        begin = start if len(theirs) == len(anchor.values[one.key]) else 0
        mixed = (1 - share) * ours + share * theirs[begin : begin + rows]
        expected[tensor.key][start : start + rows] = mixed
    return expected


def assert_merged(
    found: dict[str, np.ndarray], plan: lw.MergePlan, anchor: Trained, donor: Trained
) -> None:
    assert len(plan.merged) > 30
    changed = {tensor.key for tensor in plan.merged if tensor.layer < len(plan.layers) - 1}
    for key, value in expected_values(plan, anchor, donor).items():
        before = anchor.values[key]
        assert found[key].dtype == before.dtype
        assert found[key].shape == before.shape
        if key in plan.kept:
            assert found[key].tobytes() == before.tobytes(), key
        else:
            unit = 4 * np.finfo(np.float32).eps * max(1e-3, float(np.abs(before).max()))
            np.testing.assert_allclose(found[key], value, rtol=0, atol=unit, err_msg=key)
            if key in changed and before.std():
                assert not np.array_equal(found[key], before)


@pytest.mark.parametrize("name", FITTING)
def test_a_system_as_the_anchor_gets_its_own_file_back(name: str, tmp_path: Path) -> None:
    system, other = SYSTEMS[name], SYSTEMS[FITTING[name]]
    anchor, ours = write(system, tmp_path, "anchor", 1)
    donor, theirs = write(other, tmp_path, "donor", 2)
    result = lw.merge(anchor, donor, output=tmp_path / "merged", output_format="pth")

    saved = torch.load(result.folder / "model.pth", weights_only=True)
    wanted = flat(system.nest(ours.values))
    assert [(path, str(t.dtype), tuple(t.shape)) for path, t in flat(saved).items()] == [
        (path, f"torch.{value.dtype}", value.shape) for path, value in wanted.items()
    ]
    keys = dict(zip(wanted, ours.values, strict=True))
    found = {keys[path]: tensor.numpy() for path, tensor in flat(saved).items()}
    assert_merged(found, result.plan, ours, theirs)
    assert list(lw.resolve(str(result.folder)).entries) == list(ours.values)  # a parent again


@pytest.mark.parametrize("name", ["CoNMix R50-ViT", "CoNMix ResNet-50", "CoNMix DeiT"])
def test_a_folder_of_conmix_comes_back_as_three_files_of_its_stage(
    name: str, tmp_path: Path
) -> None:
    """Both stages lie in one folder; the target model is merged with another run's source."""
    system = SYSTEMS[name]
    source, ours, theirs = (system.run(seed, system.tiny) for seed in (1, 2, 3))
    system.save(tmp_path, "anchor", source, stage="source")
    anchor = system.save(tmp_path, "anchor", ours, stage="target")
    donor = system.save(tmp_path, "donor", theirs, stage="source")
    result = lw.merge(
        f"{anchor}?stage=target",
        f"{donor}?stage=source",
        output=tmp_path / "merged",
        output_format="pth",
    )
    wanted = flat(system.nest(ours.values))
    saved = {
        part: torch.load(result.folder / f"target_{part}.pt", weights_only=True) for part in "FBC"
    }
    assert [(path, str(t.dtype), tuple(t.shape)) for path, t in flat(saved).items()] == [
        (path, f"torch.{value.dtype}", value.shape) for path, value in wanted.items()
    ]
    keys = dict(zip(wanted, ours.values, strict=True))
    found = {keys[path]: tensor.numpy() for path, tensor in flat(saved).items()}
    assert_merged(found, result.plan, ours, theirs)
    within = lw.plan(f"{anchor}?stage=target", f"{anchor}?stage=source", check_weights=True)
    assert within.merged
    assert not list(result.folder.glob("source_*"))
    again = lw.resolve(f"{result.folder}?stage=target")
    assert list(again.entries) == list(ours.values)


@pytest.mark.parametrize("name", ["DAFormer", "EDAPS", "MaxSquare", "FADA FrozenBN", "GLC"])
def test_as_safetensors_a_system_has_its_students_keys_in_their_order(
    name: str, tmp_path: Path
) -> None:
    system, other = SYSTEMS[name], SYSTEMS[FITTING[name]]
    anchor, ours = write(system, tmp_path, "anchor", 1)
    donor, theirs = write(other, tmp_path, "donor", 2)
    result = lw.merge(anchor, donor, output=tmp_path / "merged")
    written = [key for key in lw.resolve(str(result.folder)).entries if not counts(key)]
    assert written == [key for key in ours.values if not counts(key)]  # 8-byte tensors lie first
    found = load_file(result.folder / "model.safetensors")
    assert found.keys() == ours.values.keys()
    assert_merged(found, result.plan, ours, theirs)


# ------------------------------------------------------------------------------ with transformers

SIZE = replace(SYSTEMS["DAFormer"].tiny, heads=(1, 2, 3, 4))


def neutral_run(name: str, folder: Path, seed: int) -> tuple[Path, Trained, dict[str, np.ndarray]]:
    """A whole file of a system, and its backbone in the names of the oracle."""
    run = SYSTEMS[name].run(seed, SIZE)
    backbone = [entry for entry in run.entries if entry.key.startswith("backbone.")]
    return SYSTEMS[name].save(folder, name, run), run, unspell(backbone, run.values)


@pytest.mark.parametrize("name", ["DAFormer", "PiPa(HRDA)", "EDAPS"])
def test_a_backbone_of_the_paper_merges_into_a_model_that_transformers_loads(
    name: str, tmp_path: Path
) -> None:
    """By the oracle's order, layer weights and formula; the head stays as it was."""
    ours = finetuned(ancestor(SIZE, MIT), 7)
    anchor = write_transformers_folder(tmp_path / "anchor", ours, SIZE)
    donor, _, theirs = neutral_run(name, tmp_path, 8)
    result = lw.merge(anchor, donor, output=tmp_path / "merged")
    found = unspell(segformer_transformers_old(SIZE), read(result.folder))
    assert_within_rounding(found, merge_by_hand([ours, theirs], SIZE))
    assert len(result.plan.merged) == sum(map(in_backbone, ours))
    weights = result.load().state_dict()
    assert len(weights) == len(segformer_transformers_old(SIZE))


@pytest.mark.parametrize("name", ["DAFormer", "PiPa(HRDA)", "EDAPS"])
def test_a_model_of_transformers_merges_into_a_backbone_of_the_paper(
    name: str, tmp_path: Path
) -> None:
    theirs = finetuned(ancestor(SIZE, MIT), 7)
    donor = write_transformers_folder(tmp_path / "donor", theirs, SIZE)
    anchor, run, ours = neutral_run(name, tmp_path, 8)
    result = lw.merge(anchor, donor, output=tmp_path / "merged")
    tensors = read(result.folder)
    backbone = [entry for entry in run.entries if entry.key.startswith("backbone.")]
    assert_within_rounding(unspell(backbone, tensors), merge_by_hand([ours, theirs], SIZE))
    for key in set(tensors) - {entry.key for entry in backbone}:
        assert tensors[key].tobytes() == run.values[key].tobytes()


# ------------------------------------------------------------------------------ copies


@pytest.mark.parametrize("name", ["DAFormer", "PiPa(HRDA)", "EDAPS", "MIC, own teacher"])
def test_each_copy_of_a_training_run_can_be_asked_for(name: str, tmp_path: Path) -> None:
    """The student is at `model.`, which is also the end of `ema_model.` and `imnet_model.`."""
    anchor, ours = write(SYSTEMS[name], tmp_path, "anchor", 1)
    content = torch.load(anchor, weights_only=True)["state_dict"]
    for weights, prefix in (
        ("student", "model."),
        ("ema", "ema_model."),
        ("imagenet", "imnet_model."),
    ):
        checkpoint = lw.resolve(f"{anchor}?weights={weights}")
        assert list(checkpoint.entries) == list(ours.values)
        for key, entry in list(checkpoint.entries.items())[::20]:
            assert checkpoint.read(entry) == content[prefix + key].numpy().tobytes()
        ignored = set(checkpoint.ignored)
        assert ignored == {key for key in content if not key.startswith(prefix)}
    student = lw.resolve(anchor)
    assert student.read(student.entries["backbone.norm4.weight"]) == (
        ours.values["backbone.norm4.weight"].tobytes()
    )


def test_a_teacher_in_a_file_of_its_own_is_the_model_and_is_named_as_the_teacher(
    tmp_path: Path,
) -> None:
    path, run = write(SYSTEMS["MIC-det teacher"], tmp_path, "model_final_teacher", 1)
    for reference in (path, f"{path}?weights=ema"):
        assert list(lw.resolve(reference).entries) == list(run.values)
    assert ["teacher" in warning for warning in lw.resolve(path).warnings] == [True]
    with pytest.raises(lw.LwmmError, match="imagenet"):
        lw.resolve(f"{path}?weights=imagenet")


def test_what_is_saved_beside_the_networks_is_never_taken_for_weights(tmp_path: Path) -> None:
    """FADA's discriminator and PiPa's own layers hold tensors, too; both are listed."""
    path, run = write(SYSTEMS["FADA FrozenBN"], tmp_path, "fada", 1)
    checkpoint = lw.resolve(path)
    assert list(checkpoint.entries) == list(run.values)
    assert any("model_D" in key for key in checkpoint.ignored)
    path, run = write(SYSTEMS["PiPa(DAFormer)"], tmp_path, "pipa", 1)
    checkpoint = lw.resolve(path)
    assert {"project.0.weight", "classifier.bias"} <= set(checkpoint.ignored)
    assert list(checkpoint.entries) == list(run.values)


def test_the_imagenet_copies_of_two_runs_are_one_backbone_and_two_heads(tmp_path: Path) -> None:
    """What can prove a common pre-training: the same bits in files of different systems."""
    models = []
    for name in ("DAFormer", "EDAPS"):
        path, _ = write(SYSTEMS[name], tmp_path, name, len(models))
        models.append(lw.resolve(f"{path}?weights=imagenet"))
    one, other = models
    for key in one.entries:
        same = one.read(one.entries[key]) == other.read(other.entries[key])
        if key.startswith("backbone."):
            assert same
        elif key.endswith("conv.weight"):
            assert not same


@pytest.mark.parametrize("anchor", ["DAFormer", "HRDA", "EDAPS"])
def test_a_moving_average_merges_as_its_student_would(anchor: str, tmp_path: Path) -> None:
    one, _ = write(SYSTEMS[anchor], tmp_path, "anchor", 1)
    other, _ = write(SYSTEMS["MIC"], tmp_path, "donor", 2)
    students, teachers = (
        lw.plan(one + query, other + query, check_weights=True) for query in ("", "?weights=ema")
    )
    assert [t.name for t in students.merged] == [t.name for t in teachers.merged]
    assert students.layers == teachers.layers
    assert [model.weights for model in teachers.models] == ["ema", "ema"]
