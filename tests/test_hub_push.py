"""What a push refuses, what a Hub refuses of a push, and that the merge is never lost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from clients import assert_one_line, client, files_of, lines, lwmm_hub
from hub import TestHub
from stories import Models, assert_complete

AGAIN = {"Retry-After": "0"}


@contextmanager
def another_commit_in_between(hub: TestHub, repo: str, what: str) -> Iterator[None]:
    """While the block runs, somebody else commits to `repo` as soon as a push to it has begun."""
    pattern = f"POST /api/models/{repo}/preupload/"
    hub.delay(f"^{pattern}", 0.4)
    seen = len(lines(hub, pattern))
    over = threading.Event()

    def commit() -> None:
        while not over.is_set():
            if len(lines(hub, pattern)) > seen:
                hub.add_commit(repo, {"notes.txt": what.encode()}, author="mallory")
                return
            time.sleep(0.01)

    other = threading.Thread(target=commit)
    other.start()
    try:
        yield
    finally:
        over.set()
        other.join()


def test_a_push_that_fails_keeps_the_folder_and_names_it(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    hub.create_repo("alice/old", {})
    hub.move("alice/old", "alice/new")
    hub.create_repo("bob/theirs", {})
    hub.create_repo("bob/hidden", {}, private=True)
    hub.create_repo("alice/public", {})
    hub.create_repo("alice/busy", {})
    hub.create_repo("alice/down", {})
    hub.create_repo("alice/info-down", {})
    hub.create_repo("alice/limited", {})
    models = (tiny.anchor, tiny.donor)
    with client(hub, home, cwd, xet=False) as run:
        without = run("merge", *models, "--push", "alice/x")
        assert_one_line(without, "pushing needs a token", "hf auth login", "then merge")
        assert (list(cwd.iterdir()), lines(hub)) == ([], [])

        for wrong in (("--license", "mit"), ("--push", "alice/x", "--license", "apache")):
            done = run("merge", *models, "-o", "kept", *wrong, token="alice")
            assert_one_line(done, "--push" if len(wrong) == 2 else "'apache-2.0'", code=2)
        assert (list(cwd.iterdir()), lines(hub)) == ([], [])
        for repo, token, options, why in (
            ("alice/old", "alice", (), "alice/old is called alice/new by now"),
            ("alice/none", "alice", ("--create-pr",), "alice/none does not exist"),
            ("alice/public", "alice", ("--private",), "alice/public is public already"),
            ("alice/x", "hf_nobody", (), "does not accept your token"),
        ):
            done = run("merge", *models, "--push", repo, *options, token=token)
            assert_one_line(done, why, "Nothing was merged yet.")
            assert list(cwd.iterdir()) == []
        assert run("merge", *models, "-o", "kept").code == 0
        before = assert_complete(cwd / "kept")
        upload = hub.fail("^PUT /_lfs/", status=500, times=None, headers=AGAIN)
        done = run("push", "kept", "alice/y", token="alice")
        assert_one_line(done, "the Hub answered 500 for alice/y", "kept: kept")
        assert upload.hits > 1
        hub.clear_faults()
        hub.fail("^POST /api/models/alice/down/commit", status=503, times=None, headers=AGAIN)
        hub.fail("^GET /api/models/alice/info-down", status=500, times=None)
        hub.fail("^POST /api/models/alice/limited/commit", status=429, times=None, headers=AGAIN)
        stated = ("--license", "mit")  # no model of this table declares its licence
        table = (
            ("alice/x", None, (), ("pushing needs a token",)),
            ("alice/x", "hf_nobody", (), ("does not accept your token",)),
            ("alice/x", "alice-read", (), ("may not write to alice/x",)),
            (
                "alice/public",
                "alice-read",
                ("--create-pr", *stated),
                ("may not write to alice/public",),
            ),
            ("bob/x", "alice", (), ("may not write to bob/x", "write access to bob")),
            ("bob/theirs", "alice", stated, ("may not write to bob/theirs", "--create-pr")),
            ("bob/hidden", "alice", (), ("may not write to bob/hidden",)),
            ("alice/old", "alice", (), ("alice/old is called alice/new by now",)),
            ("alice/nowhere", "alice", ("--create-pr",), ("does not exist", "pull request")),
            ("alice/public", "alice", ("--private",), ("alice/public is public already",)),
            ("alice/down", "alice", stated, ("answered 503 for alice/down",)),
            ("alice/info-down", "alice", (), ("answered 500 for alice/info-down",)),
            ("alice/limited", "alice", stated, ("slow down (429)",)),
        )
        messages = set()
        for repo, token, options, pieces in table:
            done = run("push", "kept", repo, *options, token=token)
            assert_one_line(done, *pieces, "The merged folder is kept: kept")
            messages.add(done.err)
        assert len(messages) == len(table)

        for status in (412, 409):
            hub.options.stale_parent_status = status
            with another_commit_in_between(hub, "alice/busy", f"{status}"):
                done = run("push", "kept", "alice/busy", "--license", "mit", token="alice")
            assert_one_line(done, "alice/busy changed while it was pushed to: push again", "kept")
            assert sorted(hub.files("alice/busy")) == [".gitattributes", "notes.txt"]
        done = run("push", "kept", "alice/busy", "--license", "mit", token="alice")
        assert done.code == 0, done.err
        assert hub.files("alice/busy")["notes.txt"] == b"409"

        hub.truncate("^POST /api/models/alice/y/commit", times=None)
        done = run("push", "kept", "alice/y", token="alice")
        assert_one_line(done, "the push to alice/y broke off", "kept: kept")
        hub.clear_faults()
        assert run("push", "kept", "alice/y", token="alice").code == 0
        assert assert_complete(cwd / "kept") == before
        assert not any(hub.exists(repo) for repo in ("alice/x", "bob/x", "alice/nowhere"))

        for wrong in ("kept/README.md", "nothing", tiny.anchor):
            assert_one_line(run("push", wrong, "alice/z", token="alice"))
        done = run("push", "kept", "no-owner", token="alice")
        assert_one_line(done, "'no-owner' is not a repository id: write owner/name", code=2)
        beside = cwd / "kept" / "preprocessor_config.json"
        beside.write_text(json.dumps({"token": hub.tokens["alice"]}))
        done = run("push", "kept", "alice/z", token="alice")
        assert_one_line(done, "preprocessor_config.json is not fit to publish", "access token")
        assert hub.tokens["alice"] not in done.err
        beside.write_text('{"from": "/home/alice/runs/latest.pth"}')
        assert_one_line(run("push", "kept", "alice/z", token="alice"), "a path of this machine")
        beside.write_text('{"from": "\\/home\\u002falice"}')  # as JSON may spell it
        assert_one_line(run("push", "kept", "alice/z", token="alice"), "a path of this machine")
        assert not hub.exists("alice/z")
        beside.write_text('{"note": "class A:\\n and B:\\u00e9"}')
        assert run("push", "kept", "alice/z", token="alice").code == 0


def test_a_push_leaves_out_what_no_merge_writes(hub: TestHub, tiny: Models, tmp_path: Path) -> None:
    cwd = tmp_path / "cwd"
    with client(hub, tmp_path / "home", cwd, xet=False) as run:
        sharded = ("-o", "kept", "--max-shard-size", "200KB")
        assert run("merge", tiny.anchor, tiny.donor, *sharded).code == 0
        written = {path.name for path in (cwd / "kept").iterdir()}
        assert "model.safetensors.index.json" in written
        for name in ("notes.txt", "predictions.csv", "other.safetensors", "train.py", ".env"):
            (cwd / "kept" / name).write_text(f"my token is {hub.tokens['alice']}")
        (cwd / "kept" / "runs").mkdir()
        (cwd / "kept" / "runs" / "config.json").write_text("{}")
        done = run("push", "kept", "alice/x", "--license", "mit", token="alice")
    assert done.code == 0, done.err
    assert set(hub.files("alice/x")) == {*written, ".gitattributes"}


def test_a_merge_whose_push_fails_is_moved_to_a_named_folder(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    hub.create_repo("bob/street", {})
    models = (tiny.anchor, tiny.pth)
    push = ("--push", "bob/street", "--license", "mit", "--json")
    with client(hub, home, cwd) as run:
        for name in ("merged-street", "merged-street-2"):
            done = run("merge", *models, *push, token="alice")
            command = f"lwmm-hub push {name} bob/street"
            assert_one_line(done, "may not write to bob/street", f"kept as {name}", command)
            assert "/lwmm-" not in done.err
            assert_complete(cwd / name)
        refused = run("merge", *models, "--push", "alice/x", "--public", token="alice")
        assert_one_line(refused, "none-declared", code=3)  # before anything is merged

        # what was moved is a whole merge: its recipe runs, its parents are still found
        again = run(
            "merge", "--recipe", "merged-street-2/lwmm_recipe.yaml", "-o", "again", "--json"
        )
        assert again.code == 0, again.err
        assert again.data["sha256"] == assert_complete(cwd / "merged-street-2")
        assert run("verify", "merged-street-2").code == 0
        pushed = run("push", "merged-street", "alice/street", token="alice")
        assert pushed.code == 0, pushed.err
        recipe = yaml.safe_load(hub.files("alice/street")["lwmm_recipe.yaml"])
        assert [sorted(model) for model in recipe["models"]] == [["local", "sha256"]] * 2
    assert sorted(path.name for path in cwd.iterdir()) == [
        "again",
        "merged-street",
        "merged-street-2",
    ]


def test_a_failing_upload_over_xet(hub: TestHub, tiny: Models, tmp_path: Path) -> None:
    hub.create_repo("org/a", files_of(tiny.anchor))
    hub.create_repo("org/b", files_of(tiny.donor))
    hub.fail("^POST /_cas/v1/xorbs/", status=403, times=None)
    place = {"hub": hub, "home": tmp_path / "home", "cwd": tmp_path / "cwd", "token": "alice"}
    done = lwmm_hub("merge", "org/a", "org/b", "-o", "kept", "--push", "alice/x", **place)
    assert_one_line(done, "alice/x", "The merged folder is kept: kept")
    assert_complete(tmp_path / "cwd" / "kept")
    hub.clear_faults()
    hub.fail("^GET /api/models/alice/x/xet-write-token", status=500, headers=AGAIN)
    done = lwmm_hub("push", "kept", "alice/x", **place)
    assert done.code == 0, done.err
    assert hub.entry("alice/x", "model.safetensors").xet_hash


NVIDIA = "license: other\nlicense_name: nvidia-segformer"
ND = "license: cc-by-nd-4.0"
NC = "license: cc-by-nc-4.0"
MIT = "license: mit"
MINE = "license: other\nlicense_name: mine\nlicense_link: LICENSE"

# cards of the two parents, options, exit code, licence on the card where it goes out
LICENSES = {
    "permissive": (MIT, "license: apache-2.0", (), 0, "apache-2.0"),
    "one non-commercial": (MIT, NC, (), 0, "cc-by-nc-4.0"),
    "one of a list non-commercial": (MIT, "license: [mit, cc-by-nc-4.0]", (), 0, "cc-by-nc-4.0"),
    "made of what is non-commercial": (MIT, f"{MIT}\nbase_model: nvidia/mit-b0", (), 0, "other"),
    "made of what is permissive": (MIT, f"{MIT}\nbase_model: [org/x, ./runs]", (), 0, "mit"),
    "relicensed": (MIT, f"{MIT}\nbase_model: nvidia/mit-b0", ("--license", "mit"), 3, None),
    "no licence satisfies both": ("license: apache-2.0", "license: gpl-2.0", (), 3, None),
    "two non-commercial": (NVIDIA, NC, (), 3, None),
    "two non-commercial, accepted": (NVIDIA, NC, ("--accept-license",), 0, "other"),
    "no derivatives": (ND, MIT, (), 3, None),
    "no derivatives, accepted": (ND, MIT, ("--accept-license",), 3, None),
    "none declared": (MIT, None, (), 3, None),
    "none declared, stated": (MIT, None, ("--license", "mit"), 0, "mit"),
    "unknown terms": (MINE, MIT, (), 3, None),
    "unknown terms, accepted": (MINE, MIT, ("--accept-license",), 3, None),
    "unknown terms, stated": (MINE, MIT, ("--license", "cc-by-nc-4.0"), 0, "cc-by-nc-4.0"),
    "stated against the parents": (NC, MIT, ("--license", "mit"), 3, None),
    "no licence of that name": (MIT, None, ("--license", "apache"), 2, None),
}


def test_licence_rules_hold_for_public_pushes_and_for_nothing_else(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    hub.create_repo("alice/public", {})
    text = {"LICENSE": b"My own terms: ask me first. See /usr/share/doc."}
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        for number, (anchor, donor, options, code, license_id) in enumerate(LICENSES.values()):
            one, other, target = f"org/a{number}", f"org/b{number}", f"alice/m{number}"
            own = text if anchor == MINE else {}
            hub.create_repo(one, files_of(tiny.anchor, anchor) | own)
            hub.create_repo(other, files_of(tiny.donor, donor))
            folder = f"m{number}"
            assert run("merge", one, other, "-o", folder).code == 0  # never gated
            done = run("push", folder, target, "--public", *options, token="alice")
            if code:
                assert_one_line(done, code=code)
                assert not hub.exists(target)
                if code == 3:  # an existing public repository is just as public
                    assert_one_line(
                        run("push", folder, "alice/public", *options, token="alice"), code=3
                    )
                    private = run("push", folder, target, token="alice")
                    assert private.code == 0, private.err
                    assert hub.repository(target).private
                continue
            assert done.code == 0, done.err
            assert not hub.repository(target).private
            files = hub.files(target)
            fields = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
            assert fields["license"] == license_id
            decision = json.loads(files["lwmm_manifest.json"])["license"]
            if "--license" in options:
                assert any(row["stated_by_user"] for row in decision["rows"])
                assert "stated by the user" in files["README.md"].decode()
            if license_id == "other":
                assert b"NVIDIA Source Code License" in files["LICENSE"]
            if own:
                assert b"ask me first" in files["LICENSE"]
                assert b"cc-by-nc-4.0" in files["LICENSE"]
    assert len(hub.commits("alice/public")) == 1


def test_a_gated_parent_makes_the_merge_private(hub: TestHub, tiny: Models, tmp_path: Path) -> None:
    hub.create_repo("nvidia/segformer-b0-x", files_of(tiny.anchor, "license: other"), gated=True)
    hub.create_repo("nvidia/mit-b0", files_of(tiny.donor, "license: other"))
    hub.grant("nvidia/segformer-b0-x", "alice")
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        models = ("nvidia/segformer-b0-x", "nvidia/mit-b0")
        done = run("merge", *models, "--push", "team/x", token="alice")
        assert done.code == 0, done.err
        assert hub.repository("team/x").private
        card = hub.files("team/x")["README.md"].decode()
        fields = yaml.safe_load(card.split("---\n")[1])
        assert (fields["license"], fields["license_name"]) == ("other", "nvidia-segformer")
        assert fields["license_link"].startswith("https://github.com/NVlabs/SegFormer")
        assert "gated" in card
        done = run("merge", *models, "--push", "team/y", "--public", token="alice")
        assert done.code == 0, done.err
        assert not hub.repository("team/y").private


def test_what_a_link_in_a_merge_leads_to_is_not_published(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    """Parents of the Hub's cache are links all over, into its own blobs."""
    hub.create_repo("org/a", files_of(tiny.anchor, MINE) | {"LICENSE": b"My own terms."})
    hub.create_repo("org/b", files_of(tiny.donor))
    secret = tmp_path / "id_rsa"
    secret.write_text("-----BEGIN PRIVATE KEY-----")
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        assert run("merge", "org/a", "org/b", "-o", "m").code == 0
        folder = tmp_path / "cwd" / "m"
        assert "My own terms." in (folder / "LICENSE").read_text()
        for name in ("merges.txt", "LICENSE"):
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(secret)
            done = run("push", "m", "alice/m", token="alice")
            assert_one_line(done, code=1)
            assert f"its {name} is a link to a file outside it: put a copy" in done.err
            (folder / name).unlink()
        assert not hub.exists("alice/m")


def test_the_blobs_of_a_cache_may_lie_on_another_disk(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    hub.create_repo("org/a", files_of(tiny.anchor, MINE) | {"LICENSE": b"My own terms."})
    hub.create_repo("org/b", files_of(tiny.donor))
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        assert run("merge", "org/a", "org/b", "-o", "m").code == 0
        [blobs] = (tmp_path / "home").rglob("models--org--a/blobs")
        blobs.rename(tmp_path / "disk")
        blobs.symlink_to(tmp_path / "disk")
        done = run("merge", "org/a", "org/b", "-o", "again")
        assert done.code == 0, done.err
        assert "My own terms." in (tmp_path / "cwd" / "again" / "LICENSE").read_text()


@pytest.mark.parametrize("flag", ["--private", "--public", "--create-pr", "--accept-license"])
def test_push_options_go_with_a_push(hub: TestHub, tiny: Models, lwmm: object, flag: str) -> None:
    done = lwmm("merge", tiny.anchor, tiny.donor, flag)  # type: ignore[operator]
    assert_one_line(done, "--push", code=2)
    assert hub.requests == []


def test_a_folder_that_is_not_what_was_merged_is_not_pushed(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    cwd = tmp_path / "cwd"
    index = "model.safetensors.index.json"
    with client(hub, tmp_path / "home", cwd) as run:
        for name, size in (("one", "5GB"), ("many", "100KB")):
            made = run("merge", tiny.anchor, tiny.donor, "-o", name, "--max-shard-size", size)
            assert made.code == 0, made.err

        def refused(folder: str, *words: str) -> None:
            done = run("push", folder, "alice/x", token="alice")
            assert_one_line(done, *words, f"The merged folder is kept: {folder}")
            assert not hub.exists("alice/x")

        (cwd / "many" / index).rename(cwd / "index")
        refused("many", f"{index} is missing among its weights")
        (cwd / "index").rename(cwd / "many" / index)
        assert run("push", "many", "alice/many", token="alice").code == 0

        config = (cwd / "one" / "config.json").read_bytes()
        (cwd / "one" / "config.json").write_bytes(b"{")
        refused("one", "its config.json is not JSON")
        (cwd / "one" / "config.json").write_bytes(config)

        manifest = json.loads((cwd / "one" / "lwmm_manifest.json").read_text())
        manifest["output"]["files"]["notes.txt"] = {"sha256": "0" * 64, "bytes": 1}
        (cwd / "one" / "notes.txt").write_text("x")
        (cwd / "one" / "lwmm_manifest.json").write_text(json.dumps(manifest))
        refused("one", "notes.txt is missing among its weights")
        del manifest["output"]["files"]["notes.txt"]
        (cwd / "one" / "lwmm_manifest.json").write_text(json.dumps(manifest))

        with (cwd / "one" / "model.safetensors").open("ab") as file:
            file.write(b"x")
        refused("one", "model.safetensors is not what was merged")
        (cwd / "one" / "model.safetensors").unlink()
        refused("one", "model.safetensors is missing among its weights")
