"""A student and averages of it in one file of torch.save: which is taken, and what is said."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pickle_builder as by_hand
import pytest
import torch
import yaml
from clients import client, files_of
from enumerators import TINY, ancestor, finetuned, spell_nvlabs, write_pth
from hub import TestHub
from safetensors.numpy import load_file
from stories import Command, Models
from torch.optim.swa_utils import AveragedModel

import lwmm_hub as lw
from lwmm_hub.checkpoint import LocalFile
from lwmm_hub.checkpoint.pytorch import StateDict, find_state_dicts, read_pytorch
from lwmm_hub.errors import CheckpointError

Weights = dict[str, torch.Tensor]


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1)
    )


def weights(seed: int = 0, before: str = "") -> Weights:
    return {before + key: value for key, value in network(seed).state_dict().items()}


def found(tmp_path: Path, content: Any, copy: str = "student", legacy: bool = False) -> StateDict:
    path = tmp_path / "some.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    file, _ = read_pytorch(LocalFile(path, path.name))
    return find_state_dicts(file.tree, path.name, copy)


def opened(reference: Path | str) -> lw.Checkpoint:
    return lw.resolve(str(reference))


def trained(seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    module = network(seed)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 3, 2, 2)).sum().backward()
    optimizer.step()
    return module, optimizer


# ------------------------------------------------------- what may be the student, and what may not


def beside() -> dict[str, Any]:
    _, optimizer = trained()
    return {
        "opt": optimizer.state_dict(),
        "sgd": optimizer.state_dict(),  # known by its structure alone
        "rng_state": {f"worker{i}": torch.get_rng_state() for i in range(9)},
        "metrics": {f"class{i}": torch.ones(2, 2) for i in range(9)},
        "discriminator": {f"D.{i}.weight": torch.ones(4, 2, 3, 3) for i in range(9)},
        "same names": {key: torch.ones(7, 7) for key in weights()},
    }


@pytest.mark.parametrize("average", ["ema", "teacher", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("key", beside())
def test_what_lies_beside_an_average_is_not_taken_for_its_student(
    tmp_path: Path, key: str, average: str
) -> None:
    state = found(tmp_path, {average: weights(), key: beside()[key], "epoch": 3})
    assert (state.path, state.copy, list(state.entries)) == ((average,), "ema", list(weights()))
    (warning,) = state.warnings
    assert "no student" in warning
    assert f"its average '{average}' (?weights=ema): that is taken" in warning


STUDENTS: dict[str, Callable[[Weights], dict[str, Any]]] = {
    "online": lambda student: {"online": student},
    "wrapped": lambda student: {"online": {f"module.{k}": v for k, v in student.items()}},
    "below a module": lambda student: {"online": {f"net.{k}": v for k, v in student.items()}},
    "deeper": lambda student: {"run": {"epoch": 1, "online": student}},
    "with a head of its own": lambda student: {"online": student | {"aux.weight": torch.ones(1)}},
    "as the best": lambda student: {"best_state_dict": student},
}


@pytest.mark.parametrize("spelt", STUDENTS.values(), ids=list(STUDENTS))
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "averaged model"])
def test_what_has_the_averages_tensors_is_a_student_that_is_not_passed_over(
    tmp_path: Path, spelt: Callable[[Weights], dict[str, Any]], wrapped: bool
) -> None:
    average = AveragedModel(network(1)).state_dict() if wrapped else weights(1)
    content = {"teacher": average, **spelt(weights())}
    with pytest.raises(CheckpointError, match=r"an average of weights, 'teacher', .*as '") as error:
        found(tmp_path, content)
    assert "Write '?weights=ema'" in str(error.value)
    state = found(tmp_path, content, "ema")
    assert (state.path, list(state.entries)) == (("teacher",), list(weights()))


def test_an_average_within_its_students_own_dictionary_is_beside_it(tmp_path: Path) -> None:
    content = {**weights(), "ema": weights(1)}
    assert found(tmp_path, content).path == ()
    assert found(tmp_path, content).others == ("ema",)
    assert found(tmp_path, content, "ema").path == ("ema",)


def test_a_table_of_counters_is_no_average(tmp_path: Path) -> None:
    """What `ema` often holds: how far the averaging is."""
    count = {"decay": torch.tensor(0.99), "num_updates": torch.tensor(7)}
    state = found(tmp_path, {"ema": count, "net_g": weights()})
    assert (state.path, state.warnings) == (("net_g",), ())


def test_records_of_a_run_do_not_make_a_choice(tmp_path: Path) -> None:
    content = {"weights": weights(), **{k: beside()[k] for k in ("rng_state", "metrics", "sgd")}}
    assert found(tmp_path, content).path == ("weights",)
    assert found(tmp_path, {"optimal_net": weights()}).path == ("optimal_net",)
    with pytest.raises(CheckpointError, match="'weights', 'discriminator'"):
        found(tmp_path, content | {"discriminator": beside()["discriminator"]})


# ------------------------------------------------------------------------ an average that is wanted

PAIRS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "mean teacher": ({"student": weights(), "teacher": weights(1)}, ("teacher",)),
    "torchvision": (
        {"model": weights(), "model_ema": AveragedModel(network(1)).state_dict()},
        ("model_ema",),
    ),
    "timm": ({"state_dict": weights(), "state_dict_ema": weights(1)}, ("state_dict_ema",)),
    "BasicSR": ({"params": weights(), "params_ema": weights(1)}, ("params_ema",)),
    "DINO": (
        {
            "student": weights(0, "module."),
            "teacher": weights(1),
            "dino_loss": {"center": torch.ones(1, 9)},
            "optimizer": trained()[1].state_dict(),
        },
        ("teacher",),
    ),
    "diffusion": (
        {"model": weights(), "ema": {"decay": 0.99, "state_dict": weights(1)}},
        ("ema", "state_dict"),
    ),
    "a callback of Lightning": (
        {
            "state_dict": weights(),
            "callbacks": {"EMA{'decay': 0.99}": {"ema_state_dict": weights(1)}},
            "optimizer_states": [trained()[1].state_dict()],
        },
        ("callbacks", "EMA{'decay': 0.99}", "ema_state_dict"),
    ),
    "mmengine": (
        {
            "state_dict": weights(1),
            "ema_state_dict": {"steps": torch.tensor(5), **weights(0, "module.")},
        },
        ("state_dict",),
    ),
    "Lightning": (
        {
            "state_dict": weights(1),
            "current_model_state": weights(),
            "averaging_state": {"n_averaged": torch.tensor(5)},
        },
        ("state_dict",),
    ),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", PAIRS)
def test_both_copies_of_a_file_can_be_had(tmp_path: Path, kind: str, legacy: bool) -> None:
    content, path = PAIRS[kind]
    state = found(tmp_path, content, "ema", legacy)
    assert (state.path, state.copy) == (path, "ema")
    model = tmp_path / "some.pth"
    for reference, seed in ((model, 0), (f"{model}?weights=ema", 1)):
        own = opened(reference)
        assert list(own.entries) == list(weights())
        for key, entry in own.entries.items():
            assert own.read(entry) == weights(seed)[key].numpy().tobytes()
        listed = " ".join(own.ignored)
        assert "tensors" in listed  # the other copy
    assert not opened(f"{model}?weights=ema").warnings


@pytest.mark.parametrize("kind", ["mmengine", "Lightning"])
def test_a_student_whose_place_the_average_has_is_taken_aloud_and_put_back(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "best.ckpt"
    torch.save(PAIRS[kind][0], path)
    (warning,) = opened(path).warnings
    assert "keeps the average of the weights as 'state_dict' and the student as" in warning
    assert kind in warning
    assert "?weights=ema" in warning
    donor = tmp_path / "donor.pth"
    torch.save(weights(), donor)
    result = lw.merge(path, donor, output=tmp_path / "out", output_format="pth")
    (written,) = result.folder.glob("*.pth")
    assert list(torch.load(written)) == ["state_dict"]


def test_counters_of_an_average_are_no_weights_and_are_listed(tmp_path: Path) -> None:
    state = found(tmp_path, PAIRS["torchvision"][0], "ema")
    assert state.prefix == "module."
    assert "'model_ema/n_averaged': a counter" in state.unused
    kept = found(tmp_path, {"steps": torch.ones(1), "conv.weight": torch.ones(2)})
    assert list(kept.entries) == ["steps", "conv.weight"]


def test_one_of_several_averages_is_taken_aloud_and_of_several_networks_none(
    tmp_path: Path,
) -> None:
    content = {"model": weights(), "teacher": weights(1), "model_ema": weights(2)}
    state = found(tmp_path, content, "ema")
    assert state.path == ("model_ema",)
    assert (
        "several averages of its weights: 'model_ema' is taken, not 'teacher'"
        in (state.warnings[0])
    )
    prototypes = {"classes": torch.ones(19, 8)}
    state = found(tmp_path, {"model": weights(), "ema": prototypes, "teacher": weights(1)}, "ema")
    assert (state.path, state.warnings) == (("teacher",), ())
    two = {name: {"ema": {f"{name}.weight": torch.ones(3)}} for name in ("G", "D")}
    with pytest.raises(CheckpointError, match="averages of several networks: 'G/ema', 'D/ema'"):
        found(tmp_path, two, "ema")


@pytest.mark.parametrize(
    "pair", [("student.", "teacher."), ("model.", "ema."), ("net.", "ema_net.")]
)
@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_teacher_beside_its_student_in_one_state_dict_can_be_had(
    tmp_path: Path, pair: tuple[str, str], wrapper: str
) -> None:
    path = tmp_path / "some.pth"
    student, teacher = pair
    torch.save({wrapper: weights(0, student) | weights(1, teacher)}, path)
    own = opened(f"{path}?weights=ema")
    assert (list(own.entries), own.prefix) == (list(weights()), teacher)
    assert set(weights(0, student)) <= set(own.ignored)
    with pytest.raises(CheckpointError, match=r"no 'imagenet' .*ema \(\?weights=ema\)"):
        opened(f"{path}?weights=imagenet")


def test_an_average_of_a_trimmed_checkpoint_has_its_students_keys(tmp_path: Path) -> None:
    keys = ("model.backbone.a.weight", "model.decode_head.b.weight")
    path = tmp_path / "some.pth"
    torch.save({name: dict.fromkeys(keys, torch.ones(2)) for name in ("state_dict", "ema")}, path)
    for reference in (path, f"{path}?weights=ema"):
        assert list(opened(reference).entries) == ["backbone.a.weight", "decode_head.b.weight"]


@pytest.mark.parametrize(
    ("student", "average", "dot"), [("", "ema_", "_"), ("model.", "model_ema.", "")]
)
def test_an_average_without_dots_can_be_had_and_is_no_layer(
    tmp_path: Path, student: str, average: str, dot: str
) -> None:
    """As EMAHook of mmcv 1 and LitEma write it: of parameters alone, in the same state dict."""
    own = weights(0, student)
    parameters = [name for name, _ in network().named_parameters()]
    other = {average + name.replace(".", dot): weights(1)[name] for name in parameters}
    if not dot:
        other |= {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}
    path = tmp_path / "some.pth"
    torch.save({"state_dict": own | other, "meta": {}}, path)
    for text, second in (("", 0), ("?weights=ema", 1)):
        checkpoint = opened(f"{path}{text}")
        assert list(checkpoint.entries) == list(own)
        for name, value in weights(second).items():
            expected = value if name in parameters else weights(0)[name]
            read = checkpoint.read(checkpoint.entries[student + name])
            assert read == expected.numpy().tobytes()
        assert "average of its weights" in checkpoint.warnings[0]
    assert set(opened(str(path)).ignored) == set(other)


def test_names_that_only_begin_like_an_average_are_layers(tmp_path: Path) -> None:
    for extra in (
        {"ema_0_weight": torch.ones(4, 3, 1, 1), "ema_other": torch.ones(2)},  # one has no student
        {"ema_0_weight": torch.ones(5), "ema_0_bias": torch.ones(4)},  # one has another shape
    ):
        torch.save(weights(0) | extra, tmp_path / "some.pth")
        checkpoint = opened(tmp_path / "some.pth")
        assert set(checkpoint.entries) == set(weights(0)) | set(extra)
        assert not checkpoint.ignored


# ------------------------------------------------------------------------------ messages are true


def test_messages_list_the_copies_that_there_are(tmp_path: Path) -> None:
    def refused(content: Any, copy: str) -> str:
        torch.save(content, tmp_path / "run.pth")
        with pytest.raises(CheckpointError) as error:
            opened(f"{tmp_path / 'run.pth'}?weights={copy}")
        return str(error.value)

    both = refused({"student": weights(), "teacher": weights(1)}, "imagenet")
    assert "has no 'imagenet' weights. It has: student (without '?weights=')" in both
    assert "ema (?weights=ema)" in both
    alone = refused({"teacher": weights()}, "imagenet")
    assert "It has: ema (?weights=ema). Name" in alone
    for copy in ("ema", "imagenet"):
        one = refused({"model": weights(), "opt": trained()[1].state_dict()}, copy)
        assert f"holds one copy of its weights, no '{copy}'. Leave" in one
    torch.save({"teacher": weights()}, tmp_path / "run.pth")
    assert "has no student" in opened(tmp_path / "run.pth").warnings[0]
    assert opened(f"{tmp_path / 'run.pth'}?weights=ema").warnings == ()


def test_shards_with_an_average_in_but_some_are_no_model(tmp_path: Path) -> None:
    torch.save(
        {"student": {"a": torch.ones(2)}, "teacher": {"a": torch.ones(2)}}, tmp_path / "1.bin"
    )
    torch.save({"b": torch.ones(2)}, tmp_path / "2.bin")
    index = {"weight_map": {"a": "1.bin", "b": "2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert list(opened(tmp_path).entries) == ["a", "b"]
    with pytest.raises(CheckpointError, match="'ema' weights in some of its files only"):
        opened(f"{tmp_path}?weights=ema")


# --------------------------------------------------------------------------- every way to a model


def checkpoints(folder: Path, names: tuple[str, str] = ("student", "teacher")) -> tuple[Path, Path]:
    """A file with a student and its teacher, and the teacher in a file of its own."""
    start = ancestor(TINY, 1)
    values = [spell_nvlabs(finetuned(start, seed), TINY) for seed in (1, 2)]
    both = {
        name: {key: torch.from_numpy(np.array(value)) for key, value in own.items()}
        for name, own in zip(names, values, strict=True)
    }
    torch.save(both | {"opt": trained()[1].state_dict()}, folder / "both.pth")
    return folder / "both.pth", write_pth(folder / "alone.pth", values[1])


@pytest.mark.parametrize(
    "names", [("student", "teacher"), ("model", "model_ema"), ("online", "teacher")]
)
def test_a_teacher_merges_from_either_file_alike_and_its_recipe_remembers_it(
    names: tuple[str, str], lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    both, alone = checkpoints(tmp_path, names)
    ema = lwmm("merge", f"{both}?weights=ema", tiny.pth, "-o", "ema", "--json")
    wanted = lwmm("merge", alone, tiny.pth, "-o", "wanted", "--json")
    assert ema.code == 0, ema.err
    assert ema.data["sha256"] == wanted.data["sha256"]
    recipe = Path("ema", "lwmm_recipe.yaml")
    assert yaml.safe_load(recipe.read_text())["models"][0]["reference"].endswith("?weights=ema")
    again = lwmm("merge", "--recipe", recipe, "-o", "again", "--json")
    assert again.data["sha256"] == ema.data["sha256"]
    assert lwmm("verify", "ema").code == 0
    assert "`both.pth` (ema)" in Path("ema", "README.md").read_text("utf-8")
    drift = lwmm("drift", f"{both}?weights=ema", alone, "--json")
    assert drift.code == 0, drift.err
    converted = lwmm("convert", f"{both}?weights=ema", "whole", "--json")
    assert converted.code == 0, converted.err
    own = load_file("whole/model.safetensors")
    teacher = torch.load(both)[names[1]]
    assert own.keys() == teacher.keys()
    assert all((own[key] == value.numpy()).all() for key, value in teacher.items())
    plain = lwmm("plan", both, tiny.pth, "--json")
    assert plain.code == (1 if names[0] == "online" else 0)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_teacher_on_the_hub_is_had_by_ranges_and_out_of_an_old_pickle(
    legacy: bool, hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    both, alone = checkpoints(tmp_path)
    if legacy:
        torch.save(torch.load(both), both, _use_new_zipfile_serialization=False)
    hub.create_repo("org/run", {"runs/both.pth": both, "runs/alone.pth": alone})
    hub.create_repo("org/b", files_of(tiny.donor))
    reference = "org/run:runs/both.pth?weights=ema"
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        plan = run("plan", reference, "org/b", "--json")
        assert plan.code == 0, plan.err
        assert plan.data["models"][0]["weights"] == "ema"
        sums = [
            run("merge", model, "org/b", "-o", name, "--json").data["sha256"]
            for name, model in (("ema", reference), ("wanted", "org/run:runs/alone.pth"))
        ]
        assert sums[0] == sums[1]
        assert run("verify", "ema").code == 0
        missing = run("plan", "org/run:runs/both.pth?weights=imagenet", "org/b")
        assert "It has: student (without '?weights='), ema (?weights=ema)" in missing.err


# --------------------------------------------------------------------------- files made to be slow


def test_a_long_key_at_every_dictionary_is_read_soon(tmp_path: Path) -> None:
    """By reference it takes two bytes each time, and all its length where it is looked at."""
    body = by_hand.text("x" * 8_000_000) + b"q\x010"
    body += by_hand.dictionary(**{f"k{i}": b"}h\x01}s" for i in range(5000)})
    path = by_hand.write(tmp_path, by_hand.archive(by_hand.pickled(body)))
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="no state dict"):
        opened(path)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("copy", ["student", "ema"])
def test_a_thousand_averages_of_a_large_student_are_read_soon(tmp_path: Path, copy: str) -> None:
    student = by_hand.dictionary(**{f"k{i}": by_hand.tensor() for i in range(20_000)})
    one = by_hand.dictionary(ema=by_hand.dictionary(k1=by_hand.tensor()))
    body = by_hand.dictionary(online=student, **{f"n{i}": one for i in range(2000)})
    path = by_hand.write(tmp_path, by_hand.archive(by_hand.pickled(body)))
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="several"):
        opened(f"{path}?weights={copy}")
    assert time.monotonic() - started < 20
