"""Scores on the card: of a merge beside its parents, from one command to the pushed model-index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from clients import assert_one_line, client, files_of
from hub.server import TestHub
from PIL import Image

import lwmm_hub as lw
from lwmm_hub.card import lint_card
from lwmm_hub.errors import OutputError, UsageError
from lwmm_hub.evaluation.comparing import evaluate_models
from lwmm_hub.evaluation.opening import open_data
from lwmm_hub.judging import judge_merge, record_scores

STREET = Path(__file__).parents[1] / "examples" / "street"
ANCHOR, DONOR = STREET / "anchor", STREET / "donor"
CLASSES = ["road", "sidewalk", "building", "vegetation", "sky", "car", "person", "pole"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six flat streets with label maps: sky above, road below, a car on it."""
    folder = tmp_path_factory.mktemp("data") / "flat"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    colors = {"sky": (150, 190, 235), "road": (105, 105, 110), "car": (190, 30, 36)}
    for i in range(6):
        labels = np.full((128, 160), CLASSES.index("sky"), np.uint8)
        labels[64:] = CLASSES.index("road")
        labels[80:100, 40 + 5 * i : 90 + 5 * i] = CLASSES.index("car")
        labels[:, -4:] = 255
        image = np.zeros((128, 160, 3), np.uint8)
        for name, color in colors.items():
            image[labels == CLASSES.index(name)] = color
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{i}.png")
    (folder.parent / "classes.json").write_text(json.dumps(CLASSES), encoding="utf-8")
    return folder


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LWMM_HUB_CACHE", str(tmp_path / "cache"))


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_scores_of_one_command_are_read_back_from_the_pushed_card(
    hub: TestHub, pictures: Path, tmp_path: Path
) -> None:
    hub.create_repo("org/day", files_of(ANCHOR))
    hub.create_repo("org/night", files_of(DONOR))
    labels = str(pictures.parent / "classes.json")
    asked = ("--evaluate", str(pictures), "--evaluate-labels", labels)
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        done = run(
            "merge", "org/day", "org/night", "--push", "alice/dusk", *asked, "--json",
            token="alice",
        )  # fmt: skip
        assert (done.code, done.err) == (0, "")
        found = {m["reference"]: m for m in done.data["scores"]["models"]}
        assert done.data["scores"]["dataset"]["images"] == 6

        files = hub.files("alice/dusk")
        card = files["README.md"].decode()
        assert lint_card(card, files=list(files)) == []
        assert str(tmp_path) not in card
        assert str(pictures.parent) not in card
        [index] = front_matter(card)["model-index"]
        [result] = index["results"]
        assert result["dataset"] == {"name": "flat", "type": "local"}
        pushed = {metric["name"]: metric["value"] for metric in result["metrics"]}
        for name, field in (("mIoU", "miou"), ("Pixel accuracy", "pixel_accuracy")):
            merged = next(m for r, m in found.items() if r.endswith("merged"))
            assert pushed[name] == merged[field]
        assert "IoU (car)" in pushed
        assert "IoU (pole)" not in pushed or np.isfinite(pushed["IoU (pole)"])
        table = [line for line in card.splitlines() if line.startswith("|")]
        assert [line for line in table if "**this model**" in line]
        for name in ("org/day", "org/night", "isotropic"):
            assert [line for line in table if name in line and line.count("|") >= 5]

        # the same scores from the command that only evaluates
        alone = run("evaluate", "alice/dusk", "--dataset", str(pictures), "--labels", labels,
                    "--json", token="alice")  # fmt: skip
        assert (alone.code, alone.err) == (0, "")
        [model] = alone.data["models"]
        assert model["miou"] == pushed["mIoU"]
        assert model["commit"] == hub.commits("alice/dusk")[0].sha


def test_a_merge_is_scored_like_its_folder_and_its_isotropic_sibling(
    pictures: Path, tmp_path: Path, states: None
) -> None:
    result = lw.merge(ANCHOR, DONOR, output=tmp_path / "merged")
    isotropic = lw.merge(ANCHOR, DONOR, output=tmp_path / "even", schedule="isotropic")
    before = result.files
    data = open_data(str(pictures), label_space=str(pictures.parent / "classes.json"))
    judged = judge_merge(result, data)
    assert judged.roles == ("anchor", "donor", "isotropic", "merged")
    assert judged.names == ("anchor", "donor", "isotropic", "merged")
    folders = [ANCHOR, result.folder, isotropic.folder]
    alone = evaluate_models([str(folder) for folder in folders], data).report.scores
    by_role = dict(zip(judged.roles, judged.scores, strict=True))
    for role, scores in zip(("anchor", "merged", "isotropic"), alone, strict=True):
        assert by_role[role].iou == pytest.approx(scores.iou, nan_ok=True)
    assert by_role["merged"].iou != by_role["isotropic"].iou
    # the weights are as they were, and the folder verifies
    assert lw.verify(result.folder).files == before


def test_a_donor_that_cannot_be_evaluated_is_named_and_left_out(
    pictures: Path, tmp_path: Path, states: None
) -> None:
    donor = tmp_path / "donor"
    donor.mkdir()
    for name in ("config.json", "model.safetensors"):
        (donor / name).write_bytes((DONOR / name).read_bytes())
    result = lw.merge(ANCHOR, donor, output=tmp_path / "merged")
    data = open_data(str(pictures), label_space=str(pictures.parent / "classes.json"))
    judged = judge_merge(result, data)
    assert judged.roles == ("anchor", "isotropic", "merged")
    [note] = [note for note in judged.notes if "was not evaluated" in note]
    assert note.startswith("donor was not evaluated: ")
    assert "image processor" in note


def test_scores_of_a_file_reach_the_card_without_paths(
    pictures: Path, tmp_path: Path, states: None, lwmm
) -> None:
    lw.merge(ANCHOR, DONOR, output="merged")
    labels = str(pictures.parent / "classes.json")
    done = lwmm("evaluate", ANCHOR, DONOR, "merged", "--dataset", pictures, "--labels", labels,
                "--map-labels", "--save-to", "scores.json", "-q")  # fmt: skip
    assert done.code == 0, done.err
    told = json.loads(Path("scores.json").read_text("utf-8"))
    told["notes"].append(f"donor was not evaluated: {ANCHOR.parent}/x is broken")
    Path("scores.json").write_text(json.dumps(told), "utf-8")
    done = lwmm("card", "merged", "--scores", "scores.json")
    assert (done.code, done.err) == (0, "")
    card = Path("merged/README.md").read_text("utf-8")
    assert "**this model**" in card
    assert str(ANCHOR.parent) not in card
    assert str(pictures.parent) not in card
    assert "- donor was not evaluated: " in card
    assert str(ANCHOR.parent) not in Path("merged/lwmm_manifest.json").read_text("utf-8")
    scores = json.loads(Path("merged/lwmm_manifest.json").read_text("utf-8"))["scores"]
    assert [model["role"] for model in scores["models"]] == ["anchor", "donor", "merged"]
    assert lint_card(card, files=[p.name for p in Path("merged").iterdir()]) == []

    other = json.loads(Path("scores.json").read_text("utf-8"))
    other["models"] = other["models"][:2]
    with pytest.raises(OutputError, match="the scores are of other models"):
        record_scores(Path("merged"), other)
    part = json.loads(Path("scores.json").read_text("utf-8"))
    part["dataset"] |= {"shard": 0, "shards": 2}
    with pytest.raises(OutputError, match="of a part of the images"):
        record_scores(Path("merged"), part)
    Path("bad.json").write_text("[1", encoding="utf-8")
    assert lwmm("card", "merged", "--scores", "bad.json").code == 2
    Path("bad.json").write_text("{}", encoding="utf-8")
    assert lwmm("card", "merged", "--scores", "bad.json").code == 1
    assert Path("merged/README.md").read_text("utf-8") == card


def test_scores_find_the_parents_of_a_merge_however_those_are_written(lwmm) -> None:
    """A revision, a file or a copy of the weights is none of a repository's name."""
    lw.merge(ANCHOR, DONOR, output="merged")
    path = Path("merged/lwmm_manifest.json")
    manifest = json.loads(path.read_text("utf-8"))
    for model, at in zip(manifest["plan"]["models"], "ab", strict=True):
        model |= {"reference": f"org/x@v{at}:run/x.pth?weights=ema", "local": False}
        model |= {"label": "org/x", "commit": at * 40}
    path.write_text(json.dumps(manifest), "utf-8")
    told = [("merged", None), ("hf://org/x@vb", "b" * 40), ("org/x", "a" * 40), ("org/y", None)]
    record_scores(
        Path("merged"),
        {
            "version": 1,
            "dataset": {"reference": "streets", "images": 1},
            "models": [{"reference": r, "commit": c, "miou": 0.5, "iou": {}} for r, c in told],
        },
    )
    scored = json.loads(path.read_text("utf-8"))["scores"]["models"]
    assert [model["role"] for model in scored] == ["merged", "donor", "anchor", "other"]


@pytest.mark.parametrize(
    "option",
    [("--evaluate-limit", "3"), ("--evaluate-split", "a"), ("--controls",), ("--map-labels",)],
)
def test_options_of_an_evaluation_need_one(lwmm, option: tuple[str, ...]) -> None:
    done = lwmm("merge", ANCHOR, DONOR, "-o", "m", *option)
    assert done.code == 2
    assert f"{option[0]} goes with --evaluate" in done.err
    assert not Path("m").exists()


def test_an_error_names_the_options_of_a_merge(lwmm, pictures: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(pictures, tmp_path / "bare")
    (bare / "id2label.json").unlink(missing_ok=True)
    done = lwmm("merge", ANCHOR, DONOR, "-o", "m", "--evaluate", bare)
    assert_one_line(done, "with --evaluate-labels")
    assert " --labels" not in done.err
    assert_one_line(lwmm("evaluate", ANCHOR, "--dataset", bare), "with --labels")


@pytest.mark.usefixtures("states")
def test_other_labels_are_refused_before_the_merge_and_can_be_mapped_in_it(
    lwmm, pictures: Path, tmp_path: Path
) -> None:
    """Data in Cityscapes' 19 classes, of which the anchor has eight."""
    asked = ("--evaluate", pictures, "--evaluate-labels", "cityscapes-19")
    fit = ("--weights", "fit", "--images", pictures / "images", "--transductive")
    for found in ((), (*fit, "--fit-steps", "1")):
        done = lwmm("merge", ANCHOR, DONOR, "-o", "m", *asked, *found)
        assert_one_line(done, "Pass --map-labels to compare by name (8 are shared)")
        assert not Path("m").exists()
        assert "fitted on" not in done.err
    done = lwmm("merge", ANCHOR, DONOR, "-o", "m", *asked, "--map-labels", "--json")
    assert done.code == 0, done.err
    assert [model["role"] for model in done.data["scores"]["models"]][-1] == "merged"
    (tmp_path / "map.txt").write_text("".join(f"{name} = {name}\n" for name in CLASSES))
    mapped = (*asked, "--map-labels", "--label-map", tmp_path / "map.txt")
    again = lwmm("merge", ANCHOR, DONOR, "-o", "m2", *mapped, "--json")
    assert again.data["scores"]["models"][-1]["miou"] == done.data["scores"]["models"][-1]["miou"]


def test_a_merge_whose_evaluation_fails_is_kept_and_named(lwmm, pictures: Path) -> None:
    asked = ("--evaluate", pictures, "--evaluate-labels", pictures.parent / "classes.json")
    broken = pictures / "labels" / "3.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:60])
    try:
        done = lwmm("merge", ANCHOR, DONOR, "-o", "m", *asked)
    finally:
        broken.write_bytes(content)
    assert_one_line(done, "3.png", "The merge is complete in m: score it", "--scores FILE")
    assert lw.verify("m")


def test_an_output_that_is_there_is_refused_before_weights_are_found(lwmm, pictures: Path) -> None:
    assert lwmm("merge", ANCHOR, DONOR, "-o", "m").code == 0
    images = ("--images", pictures / "images", "--fit-steps", "1")
    done = lwmm("merge", ANCHOR, DONOR, "-o", "m", "--weights", "fit", *images)
    assert_one_line(done, "m exists already. Pass --overwrite")
    assert "fitted on" not in done.err


@pytest.mark.parametrize("method", ["fit", "entropy", "drift"])
def test_a_plan_says_where_weights_are_found(lwmm, method: str) -> None:
    done = lwmm("plan", ANCHOR, DONOR, "--weights", method)
    assert_one_line(done, f"--weights {method} --dry-run", code=2)
    with pytest.raises(UsageError, match=f"lw.*{method}_layer_weights finds one"):
        lw.plan(ANCHOR, DONOR, weights=method)


def test_data_that_cannot_be_opened_stop_before_the_merge(lwmm, tmp_path: Path) -> None:
    done = lwmm("merge", ANCHOR, DONOR, "-o", "m", "--evaluate", "./nothing")
    assert done.code == 1
    assert "nothing" in done.err
    assert not Path("m").exists()


def test_a_limit_out_of_range_stops_before_the_merge(lwmm, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("images", "labels"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("L", (40, 40)).save(tmp_path / "data" / name / "1.png")
    data = ("--evaluate", tmp_path / "data", "--evaluate-labels", "cityscapes-19")
    done = lwmm("merge", ANCHOR, DONOR, "-o", "m", *data, "--evaluate-limit", "0")
    assert done.code == 2, done.err
    assert "limit is 0: give a number of images" in done.err
    assert not Path("m").exists()
