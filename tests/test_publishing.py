"""What a push makes public, what it asks for before that, and what it says where it fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from clients import all_text, assert_one_line, client, files_of, lines, lwmm_hub, python
from hub import TestHub
from stories import Models, assert_complete

MIT, APACHE, GPL, NC = (f"license: {i}" for i in ("mit", "apache-2.0", "gpl-3.0", "cc-by-nc-4.0"))
NVIDIA = "license: other\nlicense_name: nvidia-segformer"
LINE = "=" * 72


def card_of(hub: TestHub, repo: str) -> str:
    return hub.files(repo)["README.md"].decode()


def metadata(hub: TestHub, repo: str) -> dict:
    return yaml.safe_load(card_of(hub, repo).split("---\n")[1])


# ---------------------------------------------------------------------- licences


def test_a_stated_licence_does_not_relicense_what_the_parents_declare(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    for name, card in (("a", APACHE), ("b", APACHE), ("c", MIT), ("d", MIT)):
        folder = tiny.anchor if name in "ac" else tiny.donor
        hub.create_repo(f"org/{name}", files_of(folder, card))
    hub.create_repo("alice/there", {})
    apache, mit = ("org/a", "org/b", "--push"), ("org/c", "org/d", "--push")
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        done = run("merge", *apache, "team/x", "--public", "--license", "cc0-1.0", token="alice")
        words = ("'stated-conflict'", "Stated: cc0-1.0.", "org/a: apache-2.0", "Drop --license")
        assert_one_line(done, *words, "or keep the merge private with --private.", code=3)

        done = run("merge", *apache, "alice/there", "--license", "mit", token="alice")
        assert_one_line(done, "or push to a private repository (alice/there is public).", code=3)
        assert "--private" not in done.err, "that would be refused, too"
        assert (hub.exists("team/x"), list((tmp_path / "cwd").iterdir())) == (False, [])

        done = run("merge", *apache, "team/secret", "--license", "cc0-1.0", token="alice")
        assert done.code == 0, done.err
        stronger = ("team/stronger", "--public", "--license", "apache-2.0")
        done = run("merge", *mit, *stronger, token="alice")
        assert done.code == 0, done.err
    assert metadata(hub, "team/secret")["license"] == "apache-2.0"
    assert "lwmm-hub refuses to publish this merge." in card_of(hub, "team/secret")
    assert metadata(hub, "team/stronger")["license"] == "apache-2.0"
    assert "apache-2.0 is stated by the user." in card_of(hub, "team/stronger")
    assert "> [!WARNING]" in card_of(hub, "team/stronger")
    assert "All parents have the same licence" not in card_of(hub, "team/stronger")


@pytest.mark.parametrize(
    ("anchor", "license_id"), [(MIT, "apache-2.0"), (GPL, "gpl-3.0"), (NC, "cc-by-nc-4.0")]
)
def test_notices_and_texts_of_all_parents_go_with_the_merge(
    anchor: str, license_id: str, hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    terms, notice = "Copyright (c) 2024 Alice Author", "This is of Bob, see /usr/share/doc."
    texts = {"LICENSE": terms.encode(), "NOTICE": notice.encode(), "LICENSE.old": b"x" * (1 << 20)}
    hub.create_repo("org/a", files_of(tiny.anchor, anchor) | texts)
    rain = tmp_path / "cwd" / "rain"
    shutil.copytree(tiny.donor, rain)
    (rain / "README.md").write_text(f"---\n{APACHE}\n---\n")
    (rain / "COPYING.txt").write_text(f"{terms}\n")
    (rain / "LICENSES").mkdir()
    (rain / "LICENSE").mkdir()  # no text
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        done = run("merge", "org/a", "rain", "--push", "team/x", "--public", token="alice")
        assert done.code == 0, done.err
        assert run("merge", "org/a", "rain", "-o", "m").code == 0
        pushed = hub.files("team/x")["LICENSE"].decode()
        assert (tmp_path / "cwd" / "m" / "LICENSE").read_text() == pushed
        stated = run("push", "m", "team/y", "--license", license_id, token="alice")
        assert stated.code == 0, stated.err
    heading, *parts = pushed.split(f"\n\n{LINE}\n")
    assert "- org/a: " in heading
    assert "- rain: Apache License 2.0 (apache-2.0)" in heading
    assert [part.split("\n")[:-1] for part in parts] == [
        ["org/a (LICENSE)", "rain (COPYING.txt)", LINE],
        ["org/a (LICENSE.old)", LINE],
        ["org/a (NOTICE)", LINE, notice],
    ]
    assert terms in parts[0]
    assert "too long to be copied" in parts[1]
    again = hub.files("team/y")["LICENSE"].decode()
    assert f"{license_id} is stated by the user." in again
    assert again.split(f"\n\n{LINE}\n")[1:] == parts
    assert metadata(hub, "team/x")["license"] == license_id
    assert "The texts that came with the parents are in `LICENSE`." in card_of(hub, "team/x")


def test_texts_are_known_by_their_usual_names_and_read_in_any_letters(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    texts = {
        "LICENSE-MIT": b"mit of a",
        "LICENSES/Apache-2.0.txt": b"apache of a",
        "THIRD_PARTY_NOTICES.txt": "\u00a9 in UTF-16".encode("utf-16"),
        "docs/LICENSE": b"of the documentation",
        "license_plates.txt": b"ABC 123",
        "USE_POLICY.md": b"no weapons",
    }
    hub.create_repo("org/a", files_of(tiny.anchor, MIT) | texts)
    rain = tmp_path / "cwd" / "rain"
    shutil.copytree(tiny.donor, rain)
    (rain / "README.md").write_text(f"---\n{APACHE}\n---\n")
    (rain / "LICENSES").mkdir()
    own = {
        "LICENSE-APACHE": "apache of rain".encode("utf-8-sig"),
        "UNLICENSE": b"none",
        "LICENCE.md": b"\xa9 in Latin-1",
        "LICENSES/MIT.txt": b"mit of rain",
        "COPYING.LESSER": b"lesser",
        "LICENSE.pdf": b"%PDF\x00\xff",
        "LICENSES/odd\n\nname.txt": b"of an odd name",
    }
    for name, content in own.items():
        (rain / name).write_bytes(content)
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        assert run("merge", "org/a", "rain", "-o", "m").code == 0
        made = (tmp_path / "cwd" / "m" / "LICENSE").read_text("utf-8")
        assert run("convert", "rain", "converted").code == 0
    _, *parts = made.split(f"\n\n{LINE}\n")
    found = {part.split("\n")[0]: part.split("\n", 2)[2].strip() for part in parts}
    assert found == {
        "org/a (LICENSE-MIT)": "mit of a",
        "org/a (LICENSES/Apache-2.0.txt)": "apache of a",
        "org/a (THIRD_PARTY_NOTICES.txt)": "\u00a9 in UTF-16",
        "org/a (USE_POLICY.md)": "no weapons",
        "rain (LICENSE-APACHE)": "apache of rain",
        "rain (UNLICENSE)": "none",
        "rain (LICENCE.md)": "\u00a9 in Latin-1",
        "rain (LICENSES/MIT.txt)": "mit of rain",
        "rain (COPYING.LESSER)": "lesser",
        "rain (LICENSE.pdf)": "This is no plain text, so it is not copied here. Read it where the "
        "model is.",
        "rain (LICENSES/odd name.txt)": "of an odd name",
    }
    assert b"mit of rain" in (tmp_path / "cwd" / "converted" / "LICENSE").read_bytes()


def test_a_second_statement_replaces_the_first(hub: TestHub, tiny: Models, tmp_path: Path) -> None:
    hub.create_repo("org/a", files_of(tiny.anchor, None))
    hub.create_repo("org/b", files_of(tiny.donor, MIT))
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        assert run("merge", "org/a", "org/b", "-o", "m").code == 0
        assert run("push", "m", "team/x", "--license", "mit", token="alice").code == 0
        again = tmp_path / "cwd" / "again"
        again.mkdir()
        for name, content in hub.files("team/x").items():
            (again / name).write_bytes(content)
        done = run("push", "again", "team/y", "--license", "cc-by-nc-4.0", token="alice")
        assert done.code == 0, done.err
    assert metadata(hub, "team/x")["license"] == "mit"
    assert metadata(hub, "team/y")["license"] == "cc-by-nc-4.0"
    assert "Stated by the user for org/a, not declared there." in card_of(hub, "team/y")


def test_a_merge_of_parents_without_texts_has_none(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    hub.create_repo("org/a", files_of(tiny.anchor, MIT))
    hub.create_repo("org/b", files_of(tiny.donor, APACHE))
    place = {"hub": hub, "home": tmp_path / "home", "cwd": tmp_path / "cwd", "token": "alice"}
    done = lwmm_hub("merge", "org/a", "org/b", "--push", "team/x", **place)
    assert done.code == 0, done.err
    assert "LICENSE" not in hub.files("team/x")
    assert "LICENSE" not in card_of(hub, "team/x")


def test_the_card_does_not_say_that_a_text_is_there_which_is_not(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    hub.create_repo("org/a", files_of(tiny.anchor, NVIDIA))  # its text is a link
    hub.create_repo("org/b", files_of(tiny.donor, NC) | {"LICENSE": b"Not for sale."})
    place = {"hub": hub, "home": tmp_path / "home", "cwd": tmp_path / "cwd", "token": "alice"}
    push = ("--push", "team/x", "--public", "--accept-license")
    done = lwmm_hub("merge", "org/a", "org/b", *push, **place)
    assert done.code == 0, done.err
    card, text = card_of(hub, "team/x"), hub.files("team/x")["LICENSE"].decode()
    assert "; see `LICENSE`)" in card
    assert "all of them apply together" in card
    assert "texts apply" not in card
    assert "https://github.com/NVlabs/SegFormer/blob/master/LICENSE" in text
    assert "Not for sale." in text


# ---------------------------------------------------------------------- who sees what


def test_a_private_parent_is_named_in_public_only_on_demand(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    hub.create_repo("org/a", files_of(tiny.anchor, MIT))
    secret = f"{MIT}\ndatasets: [team/patients]"
    hub.create_repo("team/secret", files_of(tiny.donor, secret), private=True)
    hub.create_repo("alice/there", {})
    models = ("org/a", "team/secret")
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        words = ("team/secret is private", "data sets", "a private repository", "--name-private")
        for target in (("team/x", "--public"), ("alice/there",), ("alice/there", "--create-pr")):
            for more in ((), ("--accept-license",)):
                done = run("merge", *models, "--push", *target, *more, token="alice")
                assert_one_line(done, *words, f"instead of {target[0]}", "Nothing was merged yet.")
        assert list((tmp_path / "cwd").iterdir()) == []
        assert run("merge", *models, "-o", "m", token="alice").code == 0
        assert_one_line(run("push", "m", "team/x", "--public", token="alice"), *words, "kept: m")
        assert not hub.exists("team/x")
        assert len(hub.commits("alice/there")) == 1

        private = run("push", "m", "team/y", token="alice")
        assert private.code == 0, private.err
        assert metadata(hub, "team/y")["base_model"] == ["org/a", "team/secret"]
        for command in (("merge", *models, "--push", "team/x"), ("push", "m", "alice/there")):
            visible = () if "alice/there" in command else ("--public",)
            done = run(*command, *visible, "--name-private", token="alice")
            assert done.code == 0, done.err
    for repo in ("team/x", "alice/there"):
        assert metadata(hub, repo)["base_model"] == ["org/a", "team/secret"]
        assert metadata(hub, repo)["datasets"] == ["team/patients"]


def test_a_parent_that_became_private_is_not_named_either(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    """What counts is who sees it now; a merge without a network does not even know."""
    hub.create_repo("org/a", files_of(tiny.anchor, MIT))
    hub.create_repo("team/b", files_of(tiny.donor, MIT))
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        assert run("merge", "org/a", "team/b", "-o", "m").code == 0
        hub.repository("team/b").private = True
        done = run("push", "m", "alice/x", "--public", token="alice")
        assert_one_line(done, "team/b is private", "--name-private", "kept: m")
        hub.repository("team/b").private = False
        assert run("push", "m", "alice/x", "--public", token="alice").code == 0


def test_private_data_and_models_beside_a_merge_are_named_in_public_only_on_demand(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    """The card's table and model-index name what a merge was scored on, at its commit."""
    for repo in ("org/a", "org/b", "team/rival"):
        hub.create_repo(repo, files_of(tiny.anchor, MIT))
    hub.create_repo("team/patients", {}, repo_type="dataset")
    scored = [("m", None), ("org/a", "a" * 40), ("team/rival", "c" * 40)]
    document = {
        "version": 1,
        "dataset": {"reference": "team/patients", "revision": "d" * 40, "images": 1},
        "models": [{"reference": r, "commit": c, "miou": 0.5} for r, c in scored],
    }
    (tmp_path / "scores.json").write_text(json.dumps(document))
    data = hub.repository("team/patients", "dataset")
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        assert run("merge", "org/a", "org/b", "-o", "m").code == 0
        assert run("card", "m", "--scores", str(tmp_path / "scores.json")).code == 0
        push = ("push", "m", "team/x", "--public")
        for hidden, named in (
            (data, "the data set team/patients"),
            (hub.repository("team/rival"), "team/rival"),
        ):
            hidden.private = True
            done = run(*push, token="alice")
            assert_one_line(done, f"{named} is private", "with its commit", "--name-private")
            assert not hub.exists("team/x")
            hidden.private = False
        data.private = True
        assert run("push", "m", "team/y", token="alice").code == 0
        assert run(*push, "--name-private", token="alice").code == 0
        assert "team/patients" in card_of(hub, "team/x")
        path = tmp_path / "cwd" / "m" / "lwmm_manifest.json"
        manifest = json.loads(path.read_text())
        manifest["scores"] = None  # and of a fit alone
        manifest["plan"]["weights_from"] = {"method": "fit", "images": "team/patients"}
        path.write_text(json.dumps(manifest))
        assert_one_line(run("push", "m", "team/z", "--public", token="alice"), "team/patients is")


def test_from_python_a_private_parent_is_named_by_an_argument(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    hub.create_repo("org/a", files_of(tiny.anchor, MIT))
    hub.create_repo("team/secret", files_of(tiny.donor, MIT), private=True)
    code = """
        import json
        import lwmm_hub as lw

        result = lw.merge("org/a", "team/secret", output="m")
        said = ""
        try:
            result.push_to_hub("team/x", private=False)
        except lw.LwmmError as error:
            said = str(error)
        url = result.push_to_hub("team/x", private=False, name_private=True)
        print(json.dumps([said, url]))
    """
    place = {"hub": hub, "home": tmp_path / "home", "cwd": tmp_path / "cwd", "token": "alice"}
    said, url = python(code, **place)
    assert "pass --name-private to name it" in said
    assert said.endswith("(In Python: name_private.)")
    assert "team/x/commit/" in url


def test_a_push_does_not_change_who_sees_a_repository(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    hub.create_repo("org/a", files_of(tiny.anchor, MIT))
    hub.create_repo("org/b", files_of(tiny.donor, MIT))
    hub.create_repo("team/hidden", {}, private=True)
    merge = ("merge", "org/a", "org/b", "--push", "team/hidden")
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        words = (
            "team/hidden is private, and a push leaves it so",
            "make it public in its settings",
        )
        done = run(*merge, "--public", token="alice")
        assert_one_line(done, *words, "Nothing was merged yet.")
        assert not lines(hub, "GET /org/a/resolve"), "it is said before anything is downloaded"
        assert run("merge", "org/a", "org/b", "-o", "m").code == 0
        done = run("push", "m", "team/hidden", "--public", token="alice")
        assert_one_line(done, *words, "kept: m")
        assert len(hub.commits("team/hidden")) == 1
        assert run(*merge, token="alice").code == 0
        assert run(*merge, "--private", token="alice").code == 0
        assert hub.repository("team/hidden").private
        hub.repository("team/hidden").private = False  # its settings
        assert run("push", "m", "team/hidden", "--public", token="alice").code == 0


# ---------------------------------------------------------------------- paths in texts of others


def test_paths_in_an_anchors_labels_are_redacted_wherever_they_are_published(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    cwd = tmp_path / "cwd"
    city = cwd / "city"
    shutil.copytree(tiny.anchor, city)
    config = json.loads((city / "config.json").read_text())
    config["id2label"]["1"] = "/home/alice/secret"
    config["label2id"] = {label: int(i) for i, label in config["id2label"].items()}
    config["pretrained"] = "/home/alice/mit_b0.pth"
    (city / "config.json").write_text(json.dumps(config))
    (city / "README.md").write_text(f"---\n{MIT}\nlicense_link: /home/alice/terms\n---\n")
    (city / "LICENSE").write_text("My terms.")
    hub.create_repo("org/b", files_of(tiny.donor, MIT))
    with client(hub, tmp_path / "home", cwd, xet=False) as run:
        done = run("merge", "city", "org/b", "--push", "team/x", token="alice")
        assert done.code == 0, done.err
        files = hub.files("team/x")
        for text in all_text(hub, files, done):
            assert "/home/alice" not in text, text[:300]
        public = json.loads(files["config.json"])
        assert public["id2label"] == {**config["id2label"], "1": "[local path]"}
        assert public["label2id"]["[local path]"] == 1
        assert public["pretrained"] == "[local path]"
        labels = json.loads(files["lwmm_manifest.json"])["output"]["labels"]
        assert labels == list(public["id2label"].values())
        assert "road, \\[local path\\], building" in card_of(hub, "team/x")
        assert run("verify", "team/x", "--parent", "city=city", token="alice").code == 0

        # on this machine all is as it was; a token is never published, and has to be known of
        assert run("merge", "city", "org/b", "-o", "m").code == 0
        assert json.loads((cwd / "m" / "config.json").read_text()) == config
        config["id2label"]["1"] = hub.tokens["alice"]
        (cwd / "m" / "config.json").write_text(json.dumps(config))
        done = run("push", "m", "team/y", token="alice")
        assert_one_line(done, "config.json is not fit to publish", "access token", "revoke")
        assert not hub.exists("team/y")


def test_what_a_refusal_for_a_path_advises_helps(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    city = tmp_path / "cwd" / "city"
    shutil.copytree(tiny.anchor, city)
    (city / "preprocessor_config.json").write_text('{\n"from": "/home/alice/runs"\n}')
    hub.create_repo("org/b", files_of(tiny.donor, MIT))
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        done = run("merge", "city", "org/b", "--push", "team/x", token="alice")
        words = ("preprocessor_config.json is not fit", "Line 2 shows a path", "Take it out")
        assert_one_line(done, *words, "'lwmm-hub push merged-x team/x'")
        (tmp_path / "cwd" / "merged-x" / "preprocessor_config.json").write_text("{}")
        done = run("push", "merged-x", "team/x", token="alice")
        assert done.code == 0, done.err


# ---------------------------------------------------------------------- a cache that takes nothing


@contextmanager
def disk(folder: Path, *, full: bool) -> Iterator[Path]:
    """A disk of its own that is full or read-only; skips where none may be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("no disk may be mounted here")
    try:
        if full:
            with pytest.raises(OSError, match="No space left"):
                (folder / "fill").write_bytes(b"x" * (1 << 20))
        else:
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def below_a_file(folder: Path) -> Iterator[Path]:
    folder.write_text("no folder")
    yield folder / "home"


HOMES = {
    "below a file": (below_a_file, {}, "Not a directory"),
    "read-only": (disk, {"full": False}, "Read-only file system"),
    "full": (disk, {"full": True}, "No space left on device"),
}


@pytest.mark.parametrize("home", HOMES)
def test_a_push_says_that_the_clients_cache_cannot_be_written(
    home: str, hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    if shutil.which("mount") is None or (home != "below a file" and os.geteuid() != 0):
        pytest.skip("no disk may be mounted here")
    make, options, why = HOMES[home]
    cwd = tmp_path / "cwd"
    with make(tmp_path / "store", **options) as store:
        place = {"hub": hub, "home": store, "cwd": cwd, "token": "alice"}
        merge = ("merge", tiny.anchor, tiny.donor, "--push", "alice/x", "--json")
        for arguments in (merge, ("push", "merged-x", "alice/x", "--json")):
            done = lwmm_hub(*arguments, **place)
            assert (done.code, done.out) == (1, ""), "stdout is for data"
            *_, said = done.err.splitlines()  # the client's own log may stand before it
            for piece in (f"cache of the Hub's client cannot be written ({why})", "HF_HOME",
                          "HF_HUB_DISABLE_XET=1", "merged-x"):  # fmt: skip
                assert piece in said
            assert str(store) not in said
        assert_complete(cwd / "merged-x")
        done = lwmm_hub("push", "merged-x", "alice/x", "--json", **place, xet=False)  # as advised
        assert done.code == 0, done.err
        assert done.data["commit_url"].startswith(hub.endpoint)


def test_a_download_says_so_as_well_and_stdout_stays_clean(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    hub.create_repo("org/b", files_of(tiny.donor, MIT))
    place = {"hub": hub, "home": tmp_path / "home", "cwd": tmp_path / "cwd", "token": "alice"}
    done = lwmm_hub("merge", tiny.anchor, tiny.donor, "--push", "alice/x", **place)
    assert done.code == 0, done.err
    assert hub.entry("alice/x", "model.safetensors").xet_hash
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "xet").write_text("no folder")
    done = lwmm_hub("merge", "alice/x", "org/b", "--json", **place | {"home": tmp_path / "other"})
    assert (done.code, done.out) == (1, "")
    assert "cannot keep alice/x in the cache (Not a directory)" in done.err.splitlines()[-1]


@pytest.mark.parametrize("streams", ["", "2>&-"])
def test_what_native_code_prints_is_no_data(streams: str, tmp_path: Path) -> None:
    """Here a plain write to file descriptor 1 stands for it, while the command runs."""
    code = """
        import os, sys
        from lwmm_hub.cli import commands, main

        def run(arguments):
            os.write(1, b"a log line\\n")
            print("data")
            return 0

        commands.run = run
        main()
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(code))
    done = subprocess.run(
        f'exec "{sys.executable}" program.py {streams}', shell=True, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "data\n"
    assert done.stderr == ("a log line\n" if streams == "" else "")
