"""Merging again what was pushed: by those who pushed it, by others, later, and offline."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from clients import assert_one_line, client, files_of, lines, lwmm_hub
from hub import TestHub
from stories import Models, assert_complete

WEIGHTS = "model.safetensors"


def push_two(hub: TestHub, tiny: Models, home: Path, cwd: Path) -> str:
    """`org/a` and `org/b` merged as `team/m`, public; the sha256 of its weights."""
    hub.create_repo("org/a", files_of(tiny.anchor))
    hub.create_repo("org/b", files_of(tiny.donor))
    push = ("--push", "team/m", "--public")
    done = lwmm_hub("merge", "org/a", "org/b", *push, hub=hub, home=home, cwd=cwd, token="alice")
    assert (done.code, done.err) == (0, "")
    return str(hub.entry("team/m", WEIGHTS).sha256)


def deleted(hub: TestHub) -> None:
    hub.delete("org/b")


def hidden(hub: TestHub) -> None:
    hub.repository("org/b").private = True


def replaced(hub: TestHub) -> None:
    hub.delete("org/b")
    hub.create_repo("org/b", {"README.md": b"Something else."})


@pytest.mark.parametrize("lost", [deleted, hidden, replaced])
def test_a_parent_that_the_hub_has_no_more_is_read_from_the_cache_or_a_copy(
    hub: TestHub, tiny: Models, tmp_path: Path, lost: Callable[[TestHub], None]
) -> None:
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    digest = push_two(hub, tiny, home, cwd)
    commit = hub.commits("org/b")[0].sha
    shutil.copytree(tiny.donor, cwd / "copy")
    shutil.copytree(tiny.third, cwd / "other")
    (cwd / "org" / "bb").mkdir(parents=True)  # which nobody may have meant
    hub.create_repo("org/bb", {})
    lost(hub)
    with client(hub, home, cwd) as run:
        done = run("verify", "team/m", "--json")
        assert done.code == 0, done.err
        [warning] = done.data["warnings"]
        assert f"the Hub does not give org/b at {commit[:8]}" in warning
        assert "it was read from the cache" in warning
        assert "warning: the Hub does not give org/b" in run("verify", "team/m").err
        again = run("merge", "--recipe", "team/m", "-o", "again", "--json")
        assert again.code == 0, again.err
        assert again.data["sha256"] == {WEIGHTS: digest}
        assert warning in again.data["warnings"]
        assert_complete(cwd / "again")

    with client(hub, tmp_path / "elsewhere", cwd) as run:
        gone = run("verify", "team/m")
        assert_one_line(gone, "org/b", "--parent org/b=PATH")
        assert "org/bb" not in gone.err
        assert "Did you mean" not in gone.err
        assert "meant as a path" not in gone.err
        for parent in ("org/b=copy", f"org/b@{commit}=copy", f"org/b=copy/{WEIGHTS}"):
            done = run("verify", "team/m", "--parent", parent, "--json")
            assert done.code == 0, done.err
            assert "org/b was read from a copy on disk" in done.data["warnings"][0]
        again = run("merge", "--recipe", "team/m", "--parent", "org/b=copy", "-o", "copied")
        assert again.code == 0, again.err
        assert assert_complete(cwd / "copied") == {WEIGHTS: digest}
        first, second = (
            yaml.safe_load((cwd / name / "lwmm_recipe.yaml").read_text())["models"]
            for name in ("again", "copied")
        )
        assert first == second  # it is org/b at that commit, and no local model
        assert str(tmp_path) not in (cwd / "copied" / "lwmm_manifest.json").read_text()

        assert_one_line(
            run("verify", "team/m", "--parent", "org/b=other"),
            "'org/b' is not the model that the recipe names", code=5,
        )  # fmt: skip
        assert_one_line(run("verify", "team/m", "--parent", "org/b=no"), "no file or folder 'no'")
        wrong = run("verify", "team/m", "--parent", "org/c=copy")
        assert_one_line(wrong, "names no model 'org/c', it has: 'org/a', 'org/b'")


def test_other_files_of_a_commit_in_the_cache_are_not_taken_for_it(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    push_two(hub, tiny, home, cwd)
    hub.delete("org/b")
    [snapshot] = home.rglob("models--org--b/snapshots/*")
    (snapshot / WEIGHTS).unlink()
    blob = snapshot.parents[1] / "blobs" / ("a" * 64)
    shutil.copy(tiny.third / WEIGHTS, blob)
    (snapshot / "weights.safetensors").symlink_to(blob)
    with client(hub, home, cwd) as run:
        done = run("merge", "--recipe", "team/m", "-o", "again")
        assert_one_line(done, "org/b is not the model that the recipe names", code=5)
    assert not (cwd / "again").exists()


def test_two_commits_of_a_repository_have_a_copy_each(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    first = hub.create_repo("org/run", files_of(tiny.donor))
    second = hub.add_commit("org/run", files_of(tiny.anchor))
    copies = {f"org/run@{first}": tiny.donor, f"org/run@{second}": tiny.anchor}
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        models = (f"org/run@{second}", f"org/run@{first}")
        done = run("merge", *models, "--push", "team/m", "--public", token="alice")
        assert done.code == 0, done.err
    hub.delete("org/run")
    with client(hub, tmp_path / "elsewhere", tmp_path / "cwd") as run:
        several = run("verify", "team/m", "--parent", f"org/run={tiny.donor}")
        assert_one_line(several, "several models so", *copies)
        parents = [text for name, path in copies.items() for text in ("--parent", f"{name}={path}")]
        done = run("verify", "team/m", *parents)
        assert done.code == 0, done.err


def test_verify_works_offline_where_it_worked_before(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    push_two(hub, tiny, home, cwd)
    place = {"hub": hub, "home": home, "cwd": cwd}
    never = lwmm_hub("verify", "team/m", **place, HF_HUB_OFFLINE="1")
    assert_one_line(never, "team/m is not in the cache", "Run once without HF_HUB_OFFLINE")
    good = hub.commits("team/m")[0].sha
    with client(hub, home, cwd) as run:
        assert run("verify", "team/m").code == 0
    weights = bytearray(hub.files("team/m")[WEIGHTS])
    weights[-1] ^= 1
    with client(hub, home, cwd, HF_HUB_OFFLINE="1") as run:
        asked = len(lines(hub))
        for target in ("team/m", f"team/m@{good}"):
            done = run("verify", target)
            assert (done.code, done.err) == (0, "")
        again = run("merge", "--recipe", "team/m", "-o", "again")
        assert again.code == 0, again.err
        assert len(lines(hub)) == asked

    # what the Hub said of the weights counts offline, too
    hub.add_commit("team/m", {WEIGHTS: bytes(weights)}, author="mallory")
    assert lwmm_hub("verify", "team/m", **place).code == 5
    assert lwmm_hub("verify", "team/m", **place, HF_HUB_OFFLINE="1").code == 5
    [note] = home.rglob(f"models--team--m/lwmm-hub/{good}.json")
    note.write_text("[]")
    no = lwmm_hub("verify", f"team/m@{good}", **place, HF_HUB_OFFLINE="1")
    assert_one_line(no, "without the checksums", "Run once without HF_HUB_OFFLINE")


def test_a_recipe_is_named_by_its_file_folder_or_repository(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    digest = push_two(hub, tiny, home, cwd)
    with client(hub, home, cwd) as run:
        assert run("merge", "org/a", "org/b", "-o", "m").code == 0
        commit = hub.commits("team/m")[0].sha
        ways = ("m", "./m", "m/lwmm_recipe.yaml", cwd / "m", "team/m", f"hf://team/m@{commit}")
        for number, recipe in enumerate(ways):
            done = run("merge", "--recipe", recipe, "-o", f"out{number}", "--json")
            assert done.code == 0, done.err
            assert done.data["sha256"] == {WEIGHTS: digest}
            assert done.data["warnings"] == []
        planned = run("merge", "--recipe", "team/m", "--dry-run", "--json")
        assert planned.data["models"][0]["reference"] == f"org/a@{commit_of(hub, 'org/a')}"
        (cwd / "empty").mkdir()
        table = {
            "empty": "cannot read the recipe empty/lwmm_recipe.yaml",
            "nothing": "cannot read the recipe nothing",
            "some/where.yaml": "cannot read the recipe some/where.yaml",
            "org/a": "org/a has no lwmm_manifest.json and lwmm_recipe.yaml",
            "org/none": "there is no model 'org/none' on the Hub",
        }
        for recipe, says in table.items():
            assert_one_line(run("merge", "--recipe", recipe, "-o", "no"), says)
        changed = json.loads((cwd / "m" / "lwmm_manifest.json").read_text())
        changed["output"]["files"][WEIGHTS]["sha256"] = "0" * 64
        (cwd / "m" / "lwmm_manifest.json").write_text(json.dumps(changed))
        done = run("merge", "--recipe", "m", "-o", "differs")
        assert "the weights are not those beside the recipe" in done.err


def commit_of(hub: TestHub, repo: str) -> str:
    return hub.commits(repo)[0].sha


def test_the_commands_of_a_pushed_card_run_with_local_parents(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    cwd = tmp_path / "cwd"
    hub.create_repo("org/b", files_of(tiny.donor))
    city = shutil.copytree(tiny.anchor, cwd / "my 'city'")
    where = {city.name: city, "dusk": tiny.pth}
    with client(hub, tmp_path / "home", cwd) as run:
        models = (city, "org/b", tiny.pth)
        push = ("--push", "team/m", "--public", "--license", "mit")
        done = run("merge", *models, *push, token="alice")
        assert done.code == 0, done.err
        files = hub.files("team/m")
        (cwd / "lwmm_recipe.yaml").write_bytes(files["lwmm_recipe.yaml"])
        commands = re.findall(r"^lwmm-hub (.*)$", files["README.md"].decode(), re.MULTILINE)
        assert [command.split()[0] for command in commands] == ["merge", "verify"]
        for command in commands:
            words = shlex.split(command)
            given = [word for word in words if word.endswith("=PATH")]
            assert given == [f"{label}=PATH" for label in where]
            filled = [f"{word[:-4]}{where[word[:-5]]}" if word in given else word for word in words]
            again = run(*filled, token="alice")
            assert again.code == 0, again.err
        assert assert_complete(cwd / "again") == {WEIGHTS: hub.entry("team/m", WEIGHTS).sha256}
