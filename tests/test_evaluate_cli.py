"""`lwmm-hub evaluate` as users meet it: tables, pictures, files, interrupts, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from PIL import Image
from stories import Command, Finished

import lwmm_hub as lw
from lwmm_hub.evaluation.costs import Cost
from lwmm_hub.evaluation.inference import Predictor
from lwmm_hub.evaluation.reporting import Report
from lwmm_hub.evaluation.values import Scores

COUNT = 6


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("LWMM_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "evaluations"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models and a data set, in a folder."""
    root = tmp_path_factory.mktemp("world")
    for i, name in enumerate(("anchor", "donor", "merged")):
        zoo.write(root / name, zoo.segformer, i)
    draw = np.random.default_rng(0)
    for name in ("images", "labels"):
        (root / "streets" / name).mkdir(parents=True)
    for i in range(COUNT):
        shown = draw.integers(0, 255, (40, 56, 3)).astype(np.uint8)
        label = draw.choice([0, 1, 255], (40, 56)).astype(np.uint8)  # no sky
        Image.fromarray(shown).save(root / "streets" / "images" / f"{i}.png")
        Image.fromarray(label).save(root / "streets" / "labels" / f"{i}.png")
    (root / "streets" / "id2label.json").write_text(json.dumps(dict(enumerate(zoo.LABELS))))
    return root


@pytest.fixture
def evaluate(lwmm: Command, world: Path) -> Command:
    """`lwmm-hub evaluate ... --dataset streets`; names of the world become paths."""

    def call(*arguments: str | Path) -> Finished:
        own = {path.name for path in world.iterdir()}
        given = [world / a if str(a) in own else a for a in arguments]
        data = () if "--dataset" in arguments else ("--dataset", world / "streets")
        return lwmm("evaluate", *given, *data)

    return call


def assert_refused(found: Finished, code: int, *words: str) -> None:
    assert found.code == code, found
    assert found.out == ""
    assert "internal error" not in found.err
    assert "Traceback" not in found.err
    for word in words:
        assert word in found.err, found.err


def test_a_table_for_people_has_a_column_for_each_model(evaluate: Command) -> None:
    done = evaluate("anchor", "donor", "merged", "--format", "human")
    assert done.code == 0, done.err
    title, _, head, *rows = done.out.splitlines()
    assert title == f"streets, {COUNT} images, labels custom-3"
    assert head.split() == ["anchor", "donor", "merged"]
    table = {row[:20].strip(): row[20:].split() for row in rows if row}
    assert {"mIoU", "pixel accuracy", "peak memory, MB", "IoU road", "IoU sky"} <= set(table)
    assert "images per second" not in done.out, "the first model is charged with warming up"
    mine, theirs = float(table["mIoU"][0]), float(table["mIoU"][1])
    assert table["mIoU"][2] == f"({theirs - mine:+.1f})" or abs(theirs - mine) < 0.2
    assert "\x1b" not in done.out
    assert all(len(row) <= len(max(rows, key=len)) for row in rows)


def test_one_image_is_no_plural(evaluate: Command) -> None:
    done = evaluate("anchor", "--limit", "1", "--format", "human")
    assert done.out.startswith("streets, 1 image, labels custom-3\n"), done.out + done.err


def test_json_agent_and_quiet(evaluate: Command, world: Path) -> None:
    data = evaluate("anchor", "merged", "--json").data
    assert data["version"] == 1
    assert data["dataset"]["reference"] == "streets"
    assert data["dataset"]["images"] == COUNT
    assert (data["dataset"]["split"], data["dataset"]["label_space"]) == (None, "custom-3")
    assert [m["reference"] for m in data["models"]] == [
        str(world / n) for n in ("anchor", "merged")
    ]
    for model in data["models"]:
        assert set(model["iou"]) == set(zoo.LABELS)
        assert Scores.from_dict(model).miou == model["miou"]
    rows = evaluate("anchor", "merged", "--format", "agent").out.splitlines()
    assert rows[0].split("\t") == ["", "anchor", "merged"]
    assert rows[1].split("\t")[0] == "mIoU"
    assert float(rows[1].split("\t")[1]) == pytest.approx(data["models"][0]["miou"], abs=1e-9)
    quiet = evaluate("anchor", "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_ensembles_take_the_models_behind_them(evaluate: Command) -> None:
    done = evaluate("anchor", "--ensemble", "anchor", "donor", "merged", "--json", "--limit", "2")
    assert [m["reference"] for m in done.data["models"]][1] == "ensemble of anchor, donor, merged"
    assert done.data["notes"] == ["ensemble averages the probabilities of anchor, donor, merged."]
    alone = evaluate("--ensemble", "anchor", "donor", "--limit", "2", "--json")
    assert len(alone.data["models"]) == 1
    assert_refused(evaluate("anchor", "--ensemble"), 2, "--ensemble without models")
    assert_refused(evaluate("--ensemble", "--json"), 2, "--ensemble without models")
    assert_refused(evaluate("--ensemble", "anchor"), 1, "at least two models")
    assert_refused(evaluate(), 2, "name at least one model")


def test_scores_and_pictures_are_written_where_nothing_else_is(evaluate: Command) -> None:
    again = ("anchor", "donor", "--save-to", "s.json", "--overlay", "2", "--overlay-to", "o.png")
    for _ in range(2):  # the second time over what the first wrote
        done = evaluate(*again, "--json")
        assert done.code == 0, done.err
        assert json.loads(Path("s.json").read_text()) == done.data
    with Image.open("o.png") as picture:
        assert picture.width > 4 * 320
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 24) or []}
        assert (128, 0, 0) in colors  # road's, in the legend
    Path("mine.json").write_text('{"models": 1}')
    Image.new("RGB", (3, 3)).save("mine.png")
    assert_refused(evaluate("anchor", "--save-to", "mine.json"), 2, "mine.json exists", "no scores")
    overlay = ("--overlay", "1", "--overlay-to")
    assert_refused(evaluate("anchor", *overlay, "mine.png"), 2, "mine.png exists")
    assert_refused(evaluate("anchor", *overlay, "a/b.png"), 2, "there is no folder a for b.png")
    assert_refused(evaluate("anchor", "--save-to", "a/b.json"), 2, "no folder a for b.json")
    assert Path("mine.json").read_text() == '{"models": 1}'
    Path("device").symlink_to("/dev/zero")  # nothing is read from it
    assert_refused(evaluate("anchor", "--save-to", "device"), 2, "device exists")


def test_scores_that_cannot_be_written_are_kept(
    evaluate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out").mkdir()
    seen: list[int] = []
    segment = Predictor.segment

    def last(self: Predictor, images: object, task: str = "semantic") -> object:
        seen.append(1)
        if len(seen) == COUNT:
            Path("out").rmdir()
        return segment(self, images, task)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "segment", last)
    found = evaluate("anchor", "--save-to", "out/s.json")
    assert_refused(found, 1, "out/s.json cannot be written (No such file", "Name another file")
    assert evaluate("anchor", "--save-to", "s.json").code == 0
    assert len(seen) == COUNT


@pytest.fixture
def busy() -> Iterator[None]:
    """As many processes that only compute as this machine can run at once."""
    command = (sys.executable, "-c", "while True: pass")
    processes = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    yield
    for process in processes:
        process.kill()
        process.wait()


def test_speed_is_relative_to_the_first_model_however_busy_the_machine_is(
    evaluate: Command, busy: None
) -> None:
    done = evaluate("anchor", "donor", "--ensemble", "anchor", "donor", "--speed", "--json")
    costs = [m["relative_cost"] for m in done.data["models"]]
    assert costs[0] == 1
    assert 0.8 < costs[1] < 1.25  # the same network
    assert 1.6 < costs[2] < 2.5  # two of it
    for model in done.data["models"]:
        assert model["seconds_per_image"] > 0
        low, high = model["relative_cost_range"]
        assert low <= high


def test_ctrl_c_keeps_what_was_counted_and_the_next_run_goes_on(
    evaluate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate("anchor", "donor", "--json", "--states", "elsewhere").data
    seen: list[int] = []
    segment = Predictor.segment

    def interrupted(self: Predictor, images: object, task: str = "semantic") -> object:
        seen.append(1)
        if len(seen) == COUNT + 3:  # in the midst of the second model
            signal.raise_signal(signal.SIGINT)
        return segment(self, images, task)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "segment", interrupted)
    broken = evaluate("anchor", "donor", "--json")
    assert broken.code == 130
    assert broken.err.strip() == "lwmm-hub: interrupted"
    rest = evaluate("anchor", "donor", "--json").data
    assert len(seen) == COUNT + 3 + COUNT - 2
    for mine, theirs in zip(rest["models"], whole["models"], strict=True):
        assert mine["iou"] == theirs["iou"]
        assert mine["images"] == COUNT
    fresh = evaluate("anchor", "--json", "--fresh").data
    assert len(seen) == 2 * COUNT + 1 + COUNT
    assert fresh["models"][0]["iou"] == whole["models"][0]["iou"]


def test_shards_of_other_runs_are_put_together(evaluate: Command) -> None:
    whole = evaluate("anchor", "--json", "--fresh").data["models"][0]
    shared = ("--shards", "2", "--states", "shared", "--json")
    parts = [evaluate("anchor", *shared, "--shard", str(i)).data["models"][0] for i in range(2)]
    assert [p["images"] for p in parts] == [3, 3]
    plain = evaluate("anchor", *shared[:4], "--shard", "1", "--format", "human")
    assert plain.out.startswith("streets, 3 images, part 2 of 2, labels custom-3\n")
    rows = evaluate("anchor", *shared[:4], "--shard", "1", "--format", "agent").out
    assert rows.startswith("part 2 of 2\tanchor\n")
    about = evaluate("anchor", *shared, "--shard", "1").data["dataset"]
    assert (about["shard"], about["shards"]) == (1, 2)
    assert "shard" not in evaluate("anchor", *shared).data["dataset"]
    together = evaluate("anchor", *shared).data["models"][0]
    assert (together["iou"], together["images"]) == (whole["iou"], COUNT)
    assert_refused(evaluate("anchor", *shared, "--shard", "2"), 2, "numbered from 0 to 1")
    assert_refused(evaluate("anchor", "--shards", "0"), 2, "0 shards")


def test_one_label_map_is_for_models_of_several_label_sets(
    evaluate: Command, world: Path, tmp_path: Path
) -> None:
    """The usual case of a merge: a finer model beside the anchor, in the anchor's labels."""
    finer = tmp_path / "finer"
    shutil.copytree(world / "anchor", finer)
    config = json.loads((finer / "config.json").read_text("utf-8"))
    config["id2label"] = {str(i): name for i, name in enumerate(("lane", *zoo.LABELS[1:]))}
    config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
    (finer / "config.json").write_text(json.dumps(config))
    mapping = tmp_path / "map.txt"
    mapping.write_text("lane = road\n")
    two = ("anchor", finer, "--label-map", mapping, "--json")
    first, second = evaluate(*two).data["models"]
    assert first["iou"] == second["iou"]
    found = lw.compare([world / "anchor", finer], world / "streets", map_labels={"lane": "road"})
    assert [scores.miou for scores in found.report.scores] == [first["miou"]] * 2
    assert_refused(evaluate("anchor", *two[2:]), 1, "'lane', on the left of it, is none of")
    mapping.write_text("lane = road\nlain = road\n")
    assert_refused(evaluate(*two), 1, "'lain', on the left of it, is none of")


def test_labels_are_mapped_when_that_is_asked_for(evaluate: Command, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps(["lane", "car", "sky"]))
    options = ("anchor", "--labels", names)
    assert_refused(evaluate(*options), 1, "road, car, sky", "lane, car, sky", "--map-labels")
    mapping = tmp_path / "map.txt"
    mapping.write_text("road = lane  # as we say\n\n")
    plain = evaluate("anchor", "--json").data["models"][0]
    done = evaluate(*options, "--label-map", mapping, "--json")
    assert list(done.data["models"][0]["iou"].values()) == list(plain["iou"].values())
    partly = evaluate(*options, "--map-labels", "--json")
    assert partly.data["notes"] == [
        "anchor has no class for lane: 0 where there are any.",
        "anchor predicts road, counted as wrong.",
    ]
    assert partly.data["models"][0]["iou"]["lane"] == 0
    alike = ("donor", "merged", "anchor", "--limit", "1", "--map-labels", "--json")
    assert evaluate(*options, *alike).data["notes"] == [
        f"each of the 4 models {note.removeprefix('anchor ')}" for note in partly.data["notes"]
    ]
    assert evaluate(*options, *alike[2:]).data["notes"] == [
        f"each of anchor and anchor-2 {note.removeprefix('anchor ')}"
        for note in partly.data["notes"]
    ]
    own = evaluate(*options, "--model-labels", names, "--json")
    assert own.data["models"][0]["miou"] == plain["miou"]
    mapping.write_text("road lane\n")
    assert_refused(evaluate(*options, "--label-map", mapping), 2, "line 1", "'road lane' is not")
    mapping.unlink()
    os.mkfifo(mapping)
    assert_refused(evaluate(*options, "--label-map", mapping), 2, "map.txt: it is no regular file")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("anchor", "--dataset", "nowhere/"), 1, ("nowhere",)),
        (("anchor", "--dataset", "./nowhere"), 1, ("there is no folder ./nowhere",)),
        (("anchor", "--task", "poetry"), 2, ("task 'poetry' is unknown: choose semantic",)),
        (("anchor", "--task", "panoptic"), 1, ("no panoptic truth that pairs",)),
        (("anchor", "--split", "val"), 1, ("has no splits",)),
        (("anchor", "--labels", "mars-7"), 2, ("no label space is called 'mars-7'",)),
        (("anchor", "--model-labels", "mars-7"), 2, ("no label space is called 'mars-7'",)),
        (("anchor", "--shard", "3"), 2, ("shard 3 of 1",)),
        (("anchor", "--shards", "0"), 2, ("0 shards",)),
        (("anchor", "--limit", "0"), 2, ("limit is 0",)),
        (("anchor", "--batch-size", "0"), 2, ("batch size is 0",)),
        (("anchor", "--window", "wide"), 2, ("write 512, or 512x1024",)),
        (("anchor", "--window", "8"), 2, ("at least 32 x 32",)),
        (("anchor", "--dtype", "int4"), 2, ("dtype 'int4' is unknown",)),
        (("anchor", "--device", "cuda:9"), 1, ("device 'cuda:9'", "--device")),
        (("streets",), 1, ("streets",)),
        (("anchor", "--overlay", "-1"), 2, ("from 0 on",)),
    ],
)
def test_what_is_refused_is_one_line(
    evaluate: Command, arguments: tuple[str, ...], code: int, said: tuple[str, ...]
) -> None:
    found = evaluate(*arguments)
    assert_refused(found, code, *said)
    assert found.err.count("\n") == 1


@pytest.mark.parametrize("make", [zoo.dpt, zoo.data2vec, zoo.eomt, zoo.eomt_semantic])
def test_networks_of_squares_see_images_of_any_size(
    lwmm: Command, world: Path, tmp_path: Path, make: Any
) -> None:
    model = zoo.write(tmp_path / "squares", zoo.lively(make))
    asked = ("evaluate", model, "--dataset", world / "streets", "--json")
    whole, window = (lwmm(*asked, *more).data for more in ((), ("--window", "64")))
    assert window["models"][0]["iou"] == whole["models"][0]["iou"]
    assert whole["notes"] == []
    (note,) = window["notes"]
    assert note.startswith("squares takes squares ")
    assert note.endswith("images smaller than the window are shown whole, as its image processor "
                         "resizes them.")  # fmt: skip
    assert_refused(lwmm(*asked, "--window", "32x128"), 1, "takes squares", "--window", "or none")


@pytest.mark.parametrize("names", [["road", "car"], ["road", "car", "sky", "dog"]])
def test_a_config_with_fewer_or_more_names_than_classes_is_named(
    evaluate: Command, world: Path, tmp_path: Path, names: list[str]
) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(world / "anchor", odd)
    config = json.loads((odd / "config.json").read_text())
    config["id2label"] = dict(enumerate(names))
    config["label2id"] = {name: i for i, name in enumerate(names)}
    (odd / "config.json").write_text(json.dumps(config))
    found = evaluate(odd, "--json")
    assert_refused(found, 1, "odd does not load", "decode_head.classifier", "id2label names every")
    assert found.err.count("\n") == 1


def test_nothing_to_compare_with_is_said(lwmm: Command, world: Path) -> None:
    assert_refused(lwmm("evaluate", world / "anchor"), 2, "name the data with --dataset")


def test_an_overlay_needs_label_maps(lwmm: Command, world: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "pets" / name / "1.png")
    found = lwmm("evaluate", world / "anchor", "--dataset", tmp_path / "pets", "--overlay", "1")
    assert_refused(found, 2, "not classification", "--overlay")


def test_help_says_what_every_option_is_for(lwmm: Command) -> None:
    done = lwmm("evaluate", "--help")
    assert done.code == 0
    for option in ("--dataset", "--ensemble", "--open-partial", "--shards", "--overlay", "--speed"):
        assert option in done.out
    assert "DATA is a data set of the Hub" in " ".join(done.out.split())  # wherever a line ends


def test_a_report_says_how_costs_were_measured() -> None:
    scores = tuple(Scores(name, None, "semantic", 1, miou=0.5) for name in "ab")
    for cpu, what in ((True, "CPU seconds per image"), (False, "seconds per image")):
        costs = (Cost(0.1, 1.0, (1.0, 1.0), cpu), Cost(0.3, 3.0, (2.5, 3.25), cpu))
        rows = Report({}, ("a", "b"), scores, costs=costs).rows()
        assert [(name, values) for name, values, _ in rows[1:]] == [
            (what, [0.1, 0.3]),
            ("relative cost", [1.0, 3.0]),
            ("relative cost, least in a round", [1.0, 2.5]),
            ("relative cost, most in a round", [1.0, 3.25]),
        ]


def test_a_report_shows_the_best_and_escapes_names() -> None:
    scores = [Scores("a", None, "semantic", 1, miou=m, iou={"<road>": m}) for m in (0.5, 0.75)]
    report = Report(
        {"reference": "x", "images": 1, "label_space": "s"}, ("first", "<b>"), tuple(scores)
    )
    assert "75.0 (+25.0)" in str(report)
    assert "\x1b[1m75.0 (+25.0)\x1b[0m" in report.text(color=True)
    assert "\x1b[1m50.0" not in report.text(color=True)
    page = report._repr_html_()
    assert "<b>75.0 (+25.0)</b>" in page
    assert "&lt;road&gt;" in page
    assert "<th>&lt;b&gt;</th>" in page
