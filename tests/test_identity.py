"""Models are the files that were read, not whatever has their name by now."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from clients import assert_one_line, client, python
from hub import TestHub
from stories import Models, everything_below, leftovers, sha256

import lwmm_hub as lw
from lwmm_hub.checkpoint import marks_of
from lwmm_hub.errors import MergeError, OutputError, RecipeError

WEIGHTS = "model.safetensors"


def copied(source: Path, target: Path) -> Path:
    """`cp -rp`: the times are the old ones."""
    return Path(shutil.copytree(source, target))


def put_in_place_of(folder: Path, other: Path) -> None:
    """`cp -p` of another model's weights over these: they look older than any merge."""
    shutil.copy2(other / WEIGHTS, folder / WEIGHTS)
    os.utime(folder / WEIGHTS, ns=(1_600_000_000 * 10**9,) * 2)


def published(hub: TestHub, repo: str) -> tuple[list[dict[str, str]], str]:
    """The checksums of the parents in a pushed recipe, and all texts that say any."""
    files = hub.files(repo)
    texts = {name: text.decode() for name, text in files.items() if not name.startswith("model.")}
    recipe = yaml.safe_load(texts["lwmm_recipe.yaml"])
    sums = [model.get("sha256", {}) for model in recipe["models"]]
    planned = json.loads(texts["lwmm_manifest.json"])["plan"]["models"]
    said = [{n: v for n, v in model["sha256"].items() if v} for model in planned]
    assert said == sums
    assert not any("marks" in model or "path" in model for model in planned)
    return sums, "".join(texts.values())


# ------------------------------------------------------------------------------------------ marks


@pytest.mark.parametrize(
    ("size", "places"),
    [(0, ()), (1, (0,)), (5000, (0, 2500, 4999)), (3 << 20, (0, 2000, (3 << 20) - 1))],
)
def test_a_mark_is_that_of_one_file(tmp_path: Path, size: int, places: tuple[int, ...]) -> None:
    """Every byte of a small file counts, of a large one those at its ends and some between."""
    file = tmp_path / "run.bin"

    def mark(content: bytes, time: int = 10**18) -> str:
        file.write_bytes(content)
        os.utime(file, ns=(time, time))
        assert marks_of(file, ["run.bin"]) == marks_of(tmp_path, ["run.bin"])
        return marks_of(file, ["run.bin"])["run.bin"]

    plain = bytes(size)
    marks = {mark(plain), mark(plain, 10**18 + 1), mark(plain + b"\0")}
    marks |= {mark(plain[:place] + b"\1" + plain[place + 1 :]) for place in places}
    assert len(marks) == 3 + len(places)
    assert mark(plain) in marks
    assert marks_of(tmp_path, ["none.bin"]) == {}


# ------------------------------------------------------------------------------------------ plans


def test_a_plan_runs_on_its_own_models_wherever_the_program_goes(
    tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copied(tiny.anchor, tmp_path / "city")
    copied(tiny.donor, tmp_path / "rain")
    copied(tiny.anchor, tmp_path / "sub" / "city")
    copied(tiny.third, tmp_path / "sub" / "rain")
    for decided in (True, False):
        monkeypatch.chdir(tmp_path)
        plan = lw.plan("city", "./rain", check_weights=decided)
        plan.save("plan.json")
        assert str(tmp_path) not in Path("plan.json").read_text()
        assert lw.MergePlan.load("plan.json") == plan
        first = lw.merge(plan, output=f"x{decided}")
        monkeypatch.chdir(tmp_path / "sub")
        again = lw.merge(plan, output=f"y{decided}")
        assert again.files == first.files
        with pytest.raises(RecipeError, match="'rain' is not what the plan was made from"):
            lw.merge(lw.MergePlan.load("../plan.json"), output="z")
        assert not Path("z").exists()


def test_a_plan_whose_model_was_replaced_does_not_run(
    tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, source in (("city", tiny.anchor), ("rain", tiny.donor), ("other", tiny.third)):
        copied(source, tmp_path / name)
    shutil.copy2(tiny.pth, "dusk.pth")
    plans = [lw.plan("city", "rain"), lw.plan("city", "rain", check_weights=True)]
    plans += [lw.plan("dusk.pth", "rain", match="values")]
    plans[0].save("plan.json")
    old = json.loads(Path("plan.json").read_text())
    for model in old["models"]:
        del model["marks"]  # as an older version saved it
    lw.merge(lw.MergePlan.from_dict(old), output="old")
    put_in_place_of(tmp_path / "rain", tmp_path / "other")
    for plan in (*plans, lw.MergePlan.load("plan.json")):
        with pytest.raises(RecipeError, match=r"'rain' is not what .* again with lw.plan"):
            lw.merge(plan, output="merged")
    assert not Path("merged").exists()
    for model in old["models"]:
        model["path"] = str(tmp_path)  # what only a plan in memory knows
    with pytest.raises(RecipeError, match="unknown field 'path'"):
        lw.MergePlan.from_dict(old)


def test_a_model_that_is_written_to_while_it_is_merged(tiny: Models, tmp_path: Path) -> None:
    rain = copied(tiny.donor, tmp_path / "rain")
    before = everything_below(tmp_path).keys()

    def interfere(made: int) -> None:
        put_in_place_of(rain, tiny.third)

    with pytest.raises(MergeError, match="rain changed while it was merged"):
        lw.merge(tiny.anchor, rain, output=tmp_path / "merged", progress=interfere)
    assert everything_below(tmp_path).keys() == before
    assert leftovers(tmp_path) == []


# ----------------------------------------------------------------------------------------- results


def test_a_result_stays_right_where_the_program_goes_elsewhere(
    tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = lw.merge(tiny.anchor, tiny.donor, output="merged")
    assert result.folder == tmp_path / "merged"
    assert result.to_dict()["output"] == "merged"
    assert str(result).startswith("merged: ")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert type(result.load()).__name__ == "SegformerForSemanticSegmentation"
    shutil.rmtree(result.folder)
    with pytest.raises(OutputError, match="there is no folder"):
        result.load()


# ------------------------------------------------------------------------------------------- pushes


def test_the_sha256_of_another_model_is_not_published(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    cwd = tmp_path / "cwd"
    copied(tiny.anchor, cwd / "city")
    copied(tiny.donor, cwd / "rain")
    shutil.copy2(tiny.pth, cwd / "dusk.pth")
    copied(tiny.third, cwd / "else" / "rain")
    truth = [{WEIGHTS: sha256(cwd / "city" / WEIGHTS)}, {WEIGHTS: sha256(cwd / "rain" / WEIGHTS)}]
    truth += [{"dusk.pth": sha256(cwd / "dusk.pth")}]
    wrong = sha256(tiny.third / WEIGHTS)
    with client(hub, tmp_path / "home", cwd, xet=False) as run:

        def push(*arguments: str) -> tuple[list[dict[str, str]], list[str]]:
            done = run("push", *arguments, "--json", token="alice")
            assert (done.code, done.err) == (0, ""), done
            sums, texts = published(hub, arguments[1])
            assert wrong not in texts
            return sums, done.data.get("warnings", [])

        assert run("merge", "city", "rain", "dusk.pth", "-o", "m").code == 0
        assert push("m", "alice/whole") == (truth, [])

        # moved to where another model lies at the same relative path, and two are not
        shutil.move(cwd / "m", cwd / "else" / "m")
        sums, warnings = push("else/m", "alice/moved")
        assert sums == [{}, {}, {}]
        assert [text.split("'")[1] for text in warnings] == ["city", "rain", "dusk"]
        assert "it is not there. Say where the original is with --parent city=PATH" in warnings[0]
        assert "it is another file than was merged" in warnings[1]
        loud = run("push", "else/m", "alice/moved", token="alice")
        assert loud.err.count("warning: the sha256 of '") == 3

        # the originals, also under another name
        shutil.move(cwd / "dusk.pth", cwd / "evening.pth")
        originals = ("city=city", "rain=rain", "dusk=evening.pth")
        parents = [text for pair in originals for text in ("--parent", pair)]
        assert push("else/m", "alice/moved", *parents) == (truth, [])
        no = run("push", "else/m", "alice/no", "--parent", "rain=else/rain", token="alice")
        assert_one_line(no, "'rain' at --parent is another file than was merged")
        no = run("push", "else/m", "alice/no", "--parent", "snow=rain", token="alice")
        assert_one_line(no, "no local parent 'snow', it has: 'city', 'rain', 'dusk'", code=2)
        assert not hub.exists("alice/no")

        # replaced where they were, by something that looks older
        shutil.move(cwd / "else" / "m", cwd / "m")
        put_in_place_of(cwd / "rain", tiny.third)
        sums, warnings = push("m", "alice/replaced")
        assert sums == [truth[0], {}, {}]
        assert len(warnings) == 2

        # a merge of an older version
        manifest = json.loads((cwd / "m" / "lwmm_manifest.json").read_text())
        for model in manifest["plan"]["models"]:
            del model["marks"]
        (cwd / "m" / "lwmm_manifest.json").write_text(json.dumps(manifest))
        sums, warnings = push("m", "alice/old")
        assert sums == [{}, {}, {}]
        assert "an older version merged it" in warnings[0]


PUSH = """
import json, os, sys, warnings
import lwmm_hub as lw

result = lw.merge(sys.argv[1], "rain", output="m")
assert result.commit_url is None
os.rename("rain", "snow")
os.mkdir("sub")
os.chdir("sub")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
    first = result.push_to_hub("alice/python")
assert result.commit_url == result.to_dict()["commit_url"] == first
second = result.push_to_hub("alice/python", parents={"rain": "../snow"})
said = [str(w.message) for w in caught if w.category is UserWarning]
print(json.dumps([said, first != second == result.commit_url]))
"""


def test_a_push_from_python_warns_and_sets_its_url(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    copied(tiny.donor, tmp_path / "cwd" / "rain")
    place = {"hub": hub, "home": tmp_path / "home", "cwd": tmp_path / "cwd", "token": "alice"}
    [said], differ = python(PUSH, tiny.anchor, **place, xet=False)
    assert said.startswith("the sha256 of 'rain' is not published: it is not there.")
    assert said.endswith("(In Python: parents.)")
    assert differ
    assert published(hub, "alice/python")[0][1] == {WEIGHTS: sha256(tiny.donor / WEIGHTS)}
