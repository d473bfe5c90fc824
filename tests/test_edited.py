"""What people changed on the Hub or in a merged folder is neither lost nor published unsaid."""

from __future__ import annotations

from pathlib import Path

from clients import assert_one_line, client, files_of, lines
from hub import TestHub
from stories import Models

MIT = "license: mit"
CARD = "README.md"
OWN = {CARD: b"---\nlicense: mit\n---\n# My own\n", "pytorch_model.bin": b"x"}


def parents(hub: TestHub, tiny: Models) -> tuple[str, str]:
    texts = {"LICENSE": b"Copyright Alice"}
    hub.create_repo("org/a", files_of(tiny.anchor, MIT) | texts)
    hub.create_repo("org/b", files_of(tiny.donor, MIT))
    return "org/a", "org/b"


def test_a_push_replaces_no_model_that_it_did_not_make(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    models = parents(hub, tiny)
    hub.create_repo("team/own", OWN)
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        words = ("team/own holds a model that lwmm-hub did not push", "pytorch_model.bin")
        done = run("merge", *models, "--push", "team/own", token="alice")
        assert_one_line(done, *words, "--create-pr", "Nothing was merged yet.")
        assert not lines(hub, "GET /org/a/resolve"), "it is said before anything is downloaded"
        assert run("merge", *models, "-o", "m").code == 0
        done = run("push", "m", "team/own", token="alice")
        assert_one_line(done, *words, "--create-pr", "kept: m")
        assert hub.files("team/own").items() >= OWN.items()
        done = run("push", "m", "team/own", "--create-pr", token="alice")
        assert (done.code, done.err) == (0, "")


def test_a_card_that_was_edited_on_the_hub_is_replaced_with_a_word(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    models = parents(hub, tiny)
    hub.create_repo("team/x", {CARD: b"---\nlicense: mit\n---\n\n"})  # as the site makes it
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        for schedule in ("step", "cosine"):
            done = run("merge", *models, "--push", "team/x", "--schedule", schedule, token="alice")
            assert (done.code, done.err) == (0, ""), "nobody edited it"
        edited = hub.files("team/x")[CARD] + b"\nIt fails at night.\n"
        commit = hub.add_commit("team/x", {CARD: edited}, author="alice")
        assert run("merge", *models, "-o", "m").code == 0
        done = run("push", "m", "team/x", "--create-pr", token="alice")
        assert (done.code, done.err) == (0, ""), "who reviews it sees the difference"
        done = run("push", "m", "team/x", token="alice")
        assert done.code == 0, done.err
        assert f"{CARD} of team/x was edited there" in done.err
        assert f"/team/x/blob/{commit}/{CARD}" in done.err
        assert hub.files("team/x", commit)[CARD] == edited
        done = run("push", "m", "team/x", token="alice")
        assert (done.code, done.err) == (0, "")


def test_nothing_of_an_earlier_merge_stays(hub: TestHub, tiny: Models, tmp_path: Path) -> None:
    models = parents(hub, tiny)  # one has a licence text
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        assert run("merge", *models, "--push", "team/x", token="alice").code == 0
        hub.add_commit("team/x", {"notes.txt": b"of mine"}, author="alice")
        assert "LICENSE" in hub.files("team/x")
        local = (tiny.anchor, tiny.donor, "--push", "team/x")
        assert run("merge", *local, token="alice").code == 0
    assert "LICENSE" not in hub.files("team/x")
    assert hub.files("team/x")["notes.txt"] == b"of mine"


def test_what_was_changed_in_the_folder_is_said(hub: TestHub, tiny: Models, tmp_path: Path) -> None:
    models, folder = parents(hub, tiny), tmp_path / "cwd" / "m"
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        assert run("merge", *models, "-o", "m").code == 0
        card = (folder / CARD).read_text("utf-8")
        (folder / CARD).write_text(card + "It fails at night.", "utf-8")
        done = run("push", "m", "team/x", token="alice")
        assert done.code == 0, done.err
        assert (
            f"{CARD} in m was changed since lwmm-hub wrote it, and that is not pushed" in done.err
        )
        (folder / CARD).write_text(card, "utf-8")
        config = (folder / "config.json").read_text("utf-8")
        (folder / "config.json").write_text(config + "\n", "utf-8")
        done = run("push", "m", "team/y", token="alice")
        assert done.code == 0, done.err
        assert "config.json in m was changed since the merge" in done.err
        assert_one_line(run("verify", "team/y", token="alice"), "its config.json", code=5)
        (folder / "config.json").write_text(config, "utf-8")
        done = run("push", "m", "team/y", token="alice")
        assert (done.code, done.err) == (0, "")
        assert run("verify", "team/y", token="alice").code == 0
        (folder / "LICENSE").unlink()
        done = run("push", "m", "team/z", token="alice")
        assert_one_line(done, "LICENSE is missing beside its weights: merge again", "kept: m")
        assert b"beside" not in hub.files("team/y")["lwmm_manifest.json"].split(b'"output"')[1]


def test_what_is_closed_is_said_of_the_right_repository(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    models = parents(hub, tiny)
    hub.create_repo("team/x", {})
    off = {"X-Error-Message": "Access to this resource is disabled."}
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        assert run("merge", *models, "-o", "m").code == 0
        hub.fail("^GET /api/models/org/a", status=403, times=None)
        done = run("push", "m", "team/x", token="alice")
        assert_one_line(done, "org/a is private", "--name-private", "kept: m")
        hub.clear_faults()
        hub.fail("^GET /api/models/(org/b|team/x)", status=403, times=None, headers=off)
        done = run("push", "m", "team/x", token="alice")
        assert_one_line(done, "team/x is disabled by the Hub: push elsewhere", "kept: m")
        assert_one_line(run("plan", *models), "org/b is disabled by the Hub. Name another model")
