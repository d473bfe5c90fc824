"""Controls of a fitted merge: what they are made of, where they are shown, what stays behind."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from clients import assert_one_line, client, files_of
from hub import TestHub
from PIL import Image
from stories import Command

import lwmm_hub as lw
from lwmm_hub.card import lint_card
from lwmm_hub.controls import CONTROLS, controls_of
from lwmm_hub.errors import UsageError
from lwmm_hub.evaluation.comparing import evaluate_models
from lwmm_hub.evaluation.inference import Predictor
from lwmm_hub.evaluation.label_maps import LabelOptions
from lwmm_hub.evaluation.opening import open_data
from lwmm_hub.evaluation.running import RunOptions
from lwmm_hub.writing import sha256_of

STREET = Path(__file__).parents[1] / "examples" / "street"
CLASSES = ["road", "sidewalk", "building", "vegetation", "sky", "car", "person", "pole"]
COLORS = {"sky": (150, 190, 235), "building": (120, 90, 80), "road": (105, 105, 110)}
COLORS |= {"car": (190, 30, 36)}
COUNT = 4


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Caches and temporary folders of this test alone; the latter are empty behind it."""
    monkeypatch.setenv("LWMM_HUB_CACHE", str(tmp_path / "cache"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    return scratch


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The street's two models, looking at a quarter of their size, streets, and a fitted merge."""
    root = tmp_path_factory.mktemp("controls")
    for name in ("anchor", "donor"):
        shutil.copytree(STREET / name, root / name)
        file = root / name / "preprocessor_config.json"
        processor = json.loads(file.read_text()) | {"size": {"height": 64, "width": 64}}
        file.write_text(json.dumps(processor))
    for kind in ("images", "labels", "../dusk"):
        (root / "streets" / kind).mkdir(parents=True)
    for i in range(2 * COUNT):
        labels = np.full((96, 128), CLASSES.index("sky"), np.uint8)
        labels[20:, : 30 + 4 * i] = CLASSES.index("building")
        labels[48:] = CLASSES.index("road")
        labels[52:76, 20 + 5 * i : 60 + 5 * i] = CLASSES.index("car")
        image = np.zeros((*labels.shape, 3), np.uint8)
        for name, color in COLORS.items():
            image[labels == CLASSES.index(name)] = color
        noise = np.random.default_rng(i).normal(0, 12, image.shape)
        image = np.clip(image * (0.5 + 0.06 * i) + noise, 0, 255).astype(np.uint8)
        if i < COUNT:
            Image.fromarray(image).save(root / "dusk" / f"{i}.png")
            continue
        Image.fromarray(image).save(root / "streets" / "images" / f"{i}.png")
        Image.fromarray(labels).save(root / "streets" / "labels" / f"{i}.png")
    (root / "classes.json").write_text(json.dumps(CLASSES))
    plan = lw.fit_layer_weights(
        lw.plan(root / "anchor", root / "donor"),
        root / "dusk", steps=6, lr=0.1, checks=6, threshold=0.4, states="",
    )  # fmt: skip
    assert plan.weights_from["result"] == "fitted"
    lw.merge(plan, output=root / "fitted")
    return root


def data_options(world: Path) -> tuple[str | Path, ...]:
    return ("--dataset", world / "streets", "--labels", world / "classes.json")


def recipe_rows(folder: Path) -> dict[str, list[float]]:
    recipe = yaml.safe_load((folder / "lwmm_recipe.yaml").read_text("utf-8"))
    rows: dict[str, list[float]] = recipe["layer_weights"]
    return rows


def shuffled(rows: dict[str, list[float]], seed: int = 0) -> dict[str, list[float]]:
    order = np.random.default_rng(seed).permutation(len(rows))
    values = list(rows.values())
    return {name: values[i] for name, i in zip(rows, order, strict=True)}


def by_hand(world: Path, folder: Path) -> dict[str, Path]:
    """The merges that the controls have to be, from what a user can write: files of weights."""
    rows = recipe_rows(world / "fitted")
    mean = [sum(row[i] for row in rows.values()) / len(rows) for i in range(2)]
    tables = {"constant": dict.fromkeys(rows, mean), "shuffled": shuffled(rows)}
    assert tables["shuffled"] != rows
    folder.mkdir()
    options: dict[str, dict[str, Any]] = {
        "isotropic": {"schedule": "isotropic"},
        "ramp": {"schedule": "linear"},
    }
    for name, table in tables.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps(table))
        options[name] = {"weights": file}
    parents = (world / "anchor", world / "donor")
    return {
        name: lw.merge(*parents, output=folder / name, **how).folder
        for name, how in options.items()
    }


def test_controls_are_the_merges_that_their_names_say(world: Path, tmp_path: Path) -> None:
    expected = by_hand(world, tmp_path / "by-hand")
    columns = controls_of([world / "anchor", world / "fitted"])
    assert [column.name for column in columns] == list(CONTROLS)
    digests = set()
    for column in columns:
        with column.open() as references:
            if column.name == "ensemble":
                folders = [Path(str(reference)).resolve() for reference in references]
                assert folders == [world / "anchor", world / "donor"]
                continue
            [folder] = map(Path, map(str, references))
            digest = sha256_of(folder / "model.safetensors")
            assert digest == sha256_of(expected[column.name] / "model.safetensors")
            digests.add(digest)
        assert not folder.exists()
    assert len({*digests, sha256_of(world / "fitted" / "model.safetensors")}) == 5
    with controls_of([world / "fitted"], seed=1)[-1].open() as [other]:
        assert sha256_of(Path(str(other)) / "model.safetensors") not in digests
        made = recipe_rows(Path(str(other)))
    fitted = recipe_rows(world / "fitted")
    assert made == shuffled(fitted, seed=1) != fitted
    assert Counter(map(tuple, made.values())) == Counter(map(tuple, fitted.values()))


def test_controls_are_further_columns_and_reach_the_card(
    world: Path, tmp_path: Path, lwmm: Command, own_folders: Path
) -> None:
    shutil.copytree(world / "fitted", "fitted")
    recipe = Path("fitted/lwmm_recipe.yaml")
    recipe.write_text(recipe.read_text("utf-8").replace("../", f"{world}/"))
    done = lwmm("evaluate", world / "anchor", "fitted", *data_options(world), "--controls",
                "--json", "--save-to", "scores.json")  # fmt: skip
    assert (done.code, done.err) == (0, "")
    models = done.data["models"]
    assert [m["reference"] for m in models[2:]] == list(CONTROLS)
    assert [m.get("role") for m in models] == [None, None, *CONTROLS]
    assert str(own_folders) not in done.out
    notes = done.data["notes"]
    mean = np.mean(list(recipe_rows(world / "fitted").values()), 0)
    for note in (
        "isotropic is the same parents merged uniformly.",
        "ramp is the linear schedule, where the fit began.",
        "ensemble averages the probabilities of anchor, donor.",
        "constant is the mean of the layer weights of fitted in every layer "
        f"(anchor {mean[0]:.3f}, donor {mean[1]:.3f}).",
        "shuffled is the layer weights of fitted in another order of the layers (seed 0).",
    ):
        assert note in notes
    assert list(own_folders.iterdir()) == []

    # the same scores as of the merges that the test makes, and of the ensemble that is asked for
    expected = by_hand(world, tmp_path / "by-hand")
    data = open_data(str(world / "streets"), label_space=str(world / "classes.json"))
    alone = evaluate_models(
        list(expected.values()), data,
        ensemble=[world / "anchor", world / "donor"],
        labels=LabelOptions(partial=True), run=RunOptions(states=""),
    ).report.to_dict()["models"]  # fmt: skip
    iou = dict(zip([*expected, "ensemble"], (m["iou"] for m in alone), strict=True))
    assert {m["reference"]: m["iou"] for m in models[2:]} == iou
    assert iou["constant"] != iou["shuffled"] != iou["ramp"]

    assert lwmm("card", "fitted", "--scores", "scores.json").code == 0
    card = Path("fitted/README.md").read_text("utf-8")
    table = {line.split("|")[1].strip(): line for line in card.splitlines() if line[:1] == "|"}
    for name in ("**this model**", "anchor", *CONTROLS):
        assert name in table
    assert "another order of the layers" in card
    for place in (world, tmp_path, own_folders):
        for name in ("README.md", "lwmm_manifest.json"):
            assert str(place) not in Path("fitted", name).read_text("utf-8")
    assert lint_card(card, files=[p.name for p in Path("fitted").iterdir()]) == []


def test_controls_are_timed_and_drawn_like_the_others(world: Path, lwmm: Command) -> None:
    done = lwmm("evaluate", world / "fitted", *data_options(world), "--controls", "--json",
                "--limit", "1", "--speed", "--overlay", "1")  # fmt: skip
    assert done.code == 0, done.err
    costs = {m["reference"]: m["relative_cost"] for m in done.data["models"]}
    assert len(costs) == 6
    assert costs["ensemble"] > 1.3 * costs["constant"]
    with Image.open("overlay.png") as picture:
        assert picture.width > 8 * 128


@pytest.mark.parametrize("method", ["drift", "file"])
def test_any_table_of_weights_has_controls(world: Path, lwmm: Command, method: str) -> None:
    Path("table.yaml").write_text("stages: [0.5, 0.5]\nhead: [0.8, 0.2]\n")
    weights = "drift" if method == "drift" else "table.yaml"
    parents = (world / "anchor", world / "donor")
    done = lwmm("merge", *parents, "--weights", weights, "-o", "m", "--output-format", "pth")
    assert done.code == 0, done.err
    found = controls_of(["m"])
    assert [c.name for c in found] == list(CONTROLS)
    assert found[1].about == "the linear schedule"
    with found[3].open() as [folder]:
        rows = list(recipe_rows(Path(str(folder))).values())
    own = np.array(list(recipe_rows(Path("m")).values()))
    np.testing.assert_allclose(rows, np.tile(own.mean(0), (len(own), 1)), atol=1e-12)


# ------------------------------------------------------------------------------ what is left behind


def test_nothing_is_left_of_controls_that_were_interrupted(
    world: Path, lwmm: Command, own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    segment = Predictor.segment

    def interrupted(self: Predictor, images: object, task: str = "semantic") -> object:
        seen.append([path.name for path in own_folders.glob("*/*")])
        if seen[-1] == ["constant"]:
            signal.raise_signal(signal.SIGINT)
        return segment(self, images, task)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "segment", interrupted)
        done = lwmm("evaluate", world / "fitted", *data_options(world), "--controls")
    assert (done.code, done.out) == (130, "")
    # one at a time, and none while the merge itself and the ensemble are looked at
    assert [name for name, *more in filter(None, seen) if not more] == [
        *["isotropic"] * COUNT, *["ramp"] * COUNT, "constant"
    ]  # fmt: skip
    assert list(own_folders.iterdir()) == []


def test_an_ensemble_that_cannot_be_made_is_named_and_left_out(world: Path, lwmm: Command) -> None:
    Path("bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(world / "donor" / name, Path("bare", name))
    weights = world / "fitted" / "lwmm_recipe.yaml"
    done = lwmm("merge", world / "anchor", "./bare", "--weights", weights, "-o", "m")
    assert done.code == 0, done.err
    done = lwmm("evaluate", "m", *data_options(world), "--controls", "--json", "--limit", "1")
    assert done.code == 0, done.err
    names = [m["reference"] for m in done.data["models"]]
    assert names == ["m", "isotropic", "ramp", "constant", "shuffled"]
    [note] = [n for n in done.data["notes"] if "was not evaluated" in n]
    assert note.startswith("ensemble was not evaluated: ")
    assert "image processor" in note


# -------------------------------------------------------------------------------------- the Hub


def test_controls_of_a_pushed_merge_are_made_of_its_pinned_parents(
    world: Path, tmp_path: Path, hub: TestHub, own_folders: Path
) -> None:
    for name in ("anchor", "donor"):
        hub.create_repo(f"org/{name}", files_of(world / name))
    weights = world / "fitted" / "lwmm_recipe.yaml"
    asked = (*data_options(world), "--controls", "--json", "--limit", "1")
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        done = run("merge", "org/anchor", "org/donor", "--weights", weights, "--push", "alice/fit",
                   token="alice")  # fmt: skip
        assert done.code == 0, done.err
        # what the parents have become since then does not matter
        hub.add_commit("org/donor", {"model.safetensors": world / "anchor" / "model.safetensors"})
        pushed = run("evaluate", "org/anchor", "alice/fit", *asked, token="alice")
        assert pushed.code == 0, pushed.err
        local = run("evaluate", world / "anchor", world / "fitted", *asked)
        assert (local.code, local.err) == (0, "")
        scores = [{m["reference"]: m["iou"] for m in d.data["models"][2:]} for d in (pushed, local)]
        assert scores[0] == scores[1]
        assert list(scores[0]) == list(CONTROLS)
        assert any(note.startswith("ramp is the linear schedule, where") for note in
                   pushed.data["notes"])  # fmt: skip
        # a parent of somebody's disk has to be named
        done = run("merge", world / "anchor", world / "donor", "--weights", weights, "--push",
                   "alice/ours", "--license", "mit", token="alice")  # fmt: skip
        assert done.code == 0, done.err
        ours = ("evaluate", "alice/ours", *asked)
        assert_one_line(run(*ours, token="alice"), "--parent anchor=PATH")
        named = [f"--parent={name}={world / name}" for name in ("anchor", "donor")]
        done = run(*ours, *named, token="alice")
        assert done.code == 0, done.err
        assert {m["reference"]: m["iou"] for m in done.data["models"][1:]} == scores[0]
        wrong = [f"--parent=anchor={world / 'donor'}", named[1]]
        assert_one_line(run(*ours, *wrong, token="alice"), "another sha256", code=5)
        # no merge of ours
        refused = run("evaluate", "org/anchor", *asked)
        assert_one_line(refused, "layer weights are numbers", "leave --controls out", code=2)
    assert list(own_folders.iterdir()) == []


# -------------------------------------------------------------------------------------- refusals


def test_what_has_no_controls_is_told_what_to_do(world: Path, lwmm: Command) -> None:
    anchor, donor, fitted = (world / name for name in ("anchor", "donor", "fitted"))
    lw.merge(anchor, donor, output="plain")
    shutil.copytree(fitted, "second")
    data = data_options(world)
    table: tuple[tuple[tuple[str | Path, ...], int, tuple[str, ...]], ...] = (
        ((anchor, donor), 2, ("fitted, measured, or from a file", "leave --controls out")),
        ((anchor, "plain"), 2, ("plain was merged by the linear schedule.",)),
        ((fitted, "second"), 2, ("fitted and second have layer weights in numbers", "one alone")),
        (("./nowhere",), 1, ("nowhere",)),
        ((fitted, "--parent", "anchor"), 2, ("write LABEL=PATH",)),
        ((fitted, "--parent", "x=y"), 1, ("names no local model 'x'",)),
    )
    for arguments, code, words in table:
        done = lwmm("evaluate", *arguments, *data, "--controls")
        assert_one_line(done, *words, code=code)
    assert_one_line(lwmm("evaluate", fitted, *data, "--parent", "a=b"), "--controls", code=2)
    assert_one_line(lwmm("evaluate", "second", *data, "--controls"), "'anchor'", "--parent")

    recipe = Path("second/lwmm_recipe.yaml")
    text = recipe.read_text("utf-8").replace("../", f"{world}/")
    first, row = next(iter(recipe_rows(fitted).items()))
    assert f"{first}: {row}" in text
    recipe.write_text(text.replace(f"{first}: {row}", f"{first}: [0.25, 0.75]"))
    done = lwmm("evaluate", "second", *data, "--controls")
    assert_one_line(done, "other layer weights than its manifest", "lwmm-hub verify", code=5)
    with pytest.raises(UsageError, match="linear schedule"):
        controls_of(["plain"])


def test_a_merge_is_scored_with_its_controls_when_it_is_made(world: Path, lwmm: Command) -> None:
    parents = (world / "anchor", world / "donor")
    judged = ("--evaluate", world / "streets", "--evaluate-labels", world / "classes.json")
    weights = ("--weights", world / "fitted" / "lwmm_recipe.yaml")
    done = lwmm("merge", *parents, *weights, *judged, "--controls", "-o", "m", "--json")
    assert done.code == 0, done.err
    roles = [m["role"] for m in done.data["scores"]["models"]]
    assert roles == ["anchor", "donor", *CONTROLS, "merged"]
    card = Path("m/README.md").read_text("utf-8")
    assert "| shuffled |" in card
    assert "| ensemble |" in card
    for arguments, words in (
        ((*parents, *judged), "a schedule gives them here"),
        ((*parents, *weights), "--controls goes with --evaluate"),
    ):
        assert_one_line(lwmm("merge", *arguments, "--controls", "-o", "n"), words, code=2)
    lw.merge(*parents, output="plain")
    recipe = ("--recipe", "plain/lwmm_recipe.yaml", *judged, "--controls", "-o", "n")
    assert_one_line(lwmm("merge", *recipe), "a schedule gives them here", code=2)
    assert not Path("n").exists()
