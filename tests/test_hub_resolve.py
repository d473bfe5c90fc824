"""Models on the Hub: found or refused with the next step, planned by ranges, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest
from clients import assert_one_line, client, files_of, lines, lwmm_hub
from enumerators import (
    TINY,
    SegformerSize,
    ancestor,
    finetuned,
    neutral_shapes,
    spell_transformers_old,
    with_classes,
    write_pth,
    write_transformers_folder,
)
from hub import TestHub
from safetensors.numpy import load_file
from stories import Models

from lwmm_hub.reference import ModelReference
from lwmm_hub.resolving.hub import HubFile

# deep and over 30 MB, so that headers and samples are small beside it
DEEP = SegformerSize(depths=(2, 2, 10, 2), widths=(32, 64, 160, 256), decoder_width=512)
AGAIN = {"Retry-After": "0"}
QUANTISED = {"quantization_config": {"quant_method": "bitsandbytes"}}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of related models of DEEP size: single, sharded, and a `.bin` archive."""
    folder = tmp_path_factory.mktemp("deep")
    start = ancestor(DEEP, 0)
    one, other = (with_classes(finetuned(start, i), 19 + i, i) for i in range(2))
    archive = write_transformers_folder(folder / "archive", one, DEEP)
    (archive / "model.safetensors").unlink()
    write_pth(archive / "pytorch_model.bin", spell_transformers_old(one, DEEP))
    return {
        "single": write_transformers_folder(folder / "single", one, DEEP),
        "sharded": write_transformers_folder(folder / "sharded", other, DEEP, sharded=True),
        "archive": archive,
    }


def weight_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.iterdir() if p.suffix in {".safetensors", ".bin"})


def test_every_repository_that_cannot_be_used_has_its_own_message(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    good = files_of(tiny.anchor)
    config = json.loads((tiny.anchor / "config.json").read_text())
    hub.create_repo("org/segformer-city", good)
    hub.branch("org/segformer-city", "step-3000")
    hub.tag("org/segformer-city", "v1.0")
    hub.create_repo("org/gated", good, gated=True)
    hub.create_repo("team/secret", good, private=True)
    hub.create_repo("org/empty", {"config.json": b"{}", "optimizer.pt": b"x" * 100})
    hub.create_repo(
        "org/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}
    )
    hub.create_repo(
        "org/quantised", good | {"config.json": json.dumps(config | QUANTISED).encode()}
    )
    hub.create_repo("org/several", {"a.pth": b"x", "b.pth": b"y"})
    hub.create_repo("org/nested", {"runs/one/model.pth": b"x"})
    hub.create_repo("org/broken-config", good | {"config.json": b"{"})
    hub.create_repo(
        "org/no-shard", {"model.safetensors.index.json": b'{"weight_map": {"a": "b.x"}}'}
    )
    hub.create_repo("odd/card", files_of(tiny.anchor, "self: me"))
    hub.create_repo("org/down", good)
    hub.fail("GET /api/models/org/down", status=503, times=None)
    hub.create_repo("org/busy", good)
    hub.fail("GET /api/models/org/busy", status=429, times=None)
    hub.create_repo("org/half-down", good)
    hub.fail("HEAD /org/half-down/resolve/.*config.json", status=500, times=None, headers=AGAIN)
    hub.create_repo("org/files-down", good)
    hub.fail("GET /org/files-down/.*safetensors", status=502, times=None, headers=AGAIN)
    hub.create_repo("org/broken-line", good)
    hub.truncate("GET /org/broken-line/.*safetensors", after=100, times=None)
    suggestion = "Did you mean org/segformer-city?"
    # reference, token, what the one line says
    table = (
        ("org/segformer-ctiy", None, ("no model 'org/segformer-ctiy'", suggestion)),
        ("ogr/segformer-city", None, ("no model 'ogr/segformer-city'", suggestion)),
        ("org/nothing-like-it", None, ("no model", "'hf auth login'", "Check the spelling")),
        ("org/segformer-city@step-9", None, ("revision 'step-9'", "It has main, step-3000, v1.0")),
        ("org/gated", None, ("org/gated is gated: accept its conditions", "set HF_TOKEN")),
        ("org/gated", "bob", ("org/gated is gated", f"{hub.endpoint}/org/gated", "no access yet")),
        ("team/secret", None, ("no model 'team/secret'", "private: log in")),
        ("team/secret", "bob", ("no model 'team/secret'", "your token cannot see it")),
        ("org/segformer-city", "hf_nobody", ("does not accept your token", "unset HF_TOKEN")),
        ("org/empty", None, ("org/empty has no weights", "org/name:path/to/file.pth")),
        ("org/adapter", None, ("org/adapter is a LoRA adapter", "merge_and_unload")),
        ("org/quantised", None, ("org/quantised is quantised (bitsandbytes)", "made from")),
        ("org/several", None, ("several weight files: 'a.pth', 'b.pth'", ":a.pth'")),
        ("org/nested", None, ("org/nested has", ":runs/one/model.pth'")),
        ("org/broken-config", None, ("org/broken-config: config.json is not JSON",)),
        ("org/no-shard", None, ("names 'b.x', which is missing",)),
        ("org/segformer-city:model.safetensor", None, ("Did you mean 'model.safetensors'?",)),
        ("odd/card", None, ("cannot read the card of odd/card",)),
        ("org/down", None, ("the Hub answered 503 for org/down",)),
        ("org/busy", None, ("asks to slow down (429)",)),
        ("org/half-down", None, ("the Hub answered 500 for org/half-down",)),
        ("org/files-down", None, ("the Hub answered 502 for org/files-down",)),
        ("org/broken-line", None, ("connection broke 3 times while reading model.safetensors",)),
    )  # fmt: skip
    messages = {}
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        for reference, token, pieces in table:
            done = run("plan", reference, "org/segformer-city", "--json", token=token)
            assert_one_line(done, *pieces)
            messages[done.err] = reference
        assert len(messages) == len(table)

        hub.options.ignore_ranges = True
        done = run("plan", "org/segformer-city", "org/segformer-city")
        assert_one_line(done, "sends all of model.safetensors", "hf download org/segformer-city")
        hub.options.ignore_ranges = False

        hub.grant("org/gated", "bob")
        assert run("plan", "org/gated", "org/segformer-city", token="bob").code == 0
        assert run("plan", "team/secret", "org/segformer-city", token="alice-read").code == 0
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_misspelt_path_that_could_be_a_repository_is_told_what_lies_here(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    cwd = tmp_path / "cwd"
    (cwd / "runs" / "street").mkdir(parents=True)
    hub.create_repo("org/a", files_of(tiny.anchor))
    with client(hub, tmp_path / "home", cwd) as run:
        near = run("plan", "org/a", "runs/stret")
        assert_one_line(near, "no model 'runs/stret' on the Hub", "here; there is 'runs/street'.")
        far = run("plan", "org/a", "runs/x")
        assert_one_line(
            far, "If it was meant as a path: there is no 'x' in the folder 'runs' here."
        )
    place = {"hub": hub, "home": tmp_path / "home", "cwd": cwd}
    for how in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        done = lwmm_hub("plan", "runs/stret", "org/a", **place, **how)
        assert_one_line(done, "here; there is 'runs/street'.")


def test_no_network_and_no_cache_are_told_apart(hub: TestHub, tiny: Models, tmp_path: Path) -> None:
    hub.create_repo("org/a", files_of(tiny.anchor))
    models = ("org/a", "org/a")
    place = {"hub": hub, "home": tmp_path / "home", "cwd": tmp_path / "cwd"}
    dead = lwmm_hub("plan", *models, **place, HF_ENDPOINT="http://127.0.0.1:9")
    assert_one_line(
        dead, "cannot reach the Hub at http://127.0.0.1:9 for org/a", "HF_HUB_OFFLINE=1"
    )
    offline = lwmm_hub("plan", *models, **place, HF_HUB_OFFLINE="1")
    assert_one_line(offline, "org/a is not in the cache, and HF_HUB_OFFLINE is set")
    assert lwmm_hub("plan", *models, **place).code == 0
    part = lwmm_hub("merge", *models, **place, HF_HUB_OFFLINE="1")
    assert_one_line(part, "the cache holds org/a without its weights, and HF_HUB_OFFLINE is set")
    push = lwmm_hub("merge", *models, "--push", "me/x", **place, token="alice", HF_HUB_OFFLINE="1")
    assert_one_line(push, "HF_HUB_OFFLINE is set: unset it to push")


def test_a_broken_range_goes_on_where_it_broke(hub: TestHub, tiny: Models, tmp_path: Path) -> None:
    hub.create_repo("org/a", files_of(tiny.anchor))
    hub.create_repo("org/b", files_of(tiny.donor))
    hub.truncate("GET /org/a/.*safetensors", after=1000)
    hub.fail("GET /org/b/.*safetensors", status=503, headers=AGAIN)
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        done = run("plan", "org/a", "org/b", "--json")
    assert (done.code, done.err) == (0, "")
    ranges = [r.range for r in hub.requests if r.line.startswith("GET /org/a/") and r.range]
    assert ranges == ["bytes=0-65535", "bytes=1000-65535"]


def test_a_renamed_repository_still_works_and_says_so(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    hub.create_repo("org/old", files_of(tiny.anchor))
    hub.create_repo("org/b", files_of(tiny.donor))
    hub.move("org/old", "org/new")
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        planned = run("plan", "org/old", "org/b", "--json")
        merged = run("merge", "org/old", "org/b")
    assert "org/old is called org/new by now: use that name." in planned.data["warnings"]
    assert merged.code == 0
    assert merged.err.count("org/old is called org/new by now") == 1
    card = (tmp_path / "cwd" / "merged" / "README.md").read_text()
    assert "- org/new\n" in card
    assert "org/old" not in card.split("\n---\n")[0]


@pytest.mark.parametrize("kind", ["single", "sharded", "archive"])
def test_a_plan_reads_headers_only(
    hub: TestHub, deep: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    total = weight_bytes(deep[kind])
    assert total > 30_000_000
    hub.create_repo("org/deep", files_of(deep[kind]))
    hub.branch("org/deep", "other")
    hub.options.redirect_to_cdn = True
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        done = run("plan", "org/deep@main", "org/deep@other", "--json", token="alice")
    assert done.code == 0, done.err
    plan = done.data
    assert len(plan["merged"]) == len(neutral_shapes(DEEP)) - 1  # all but the counter
    assert not plan["scope_decided"]
    assert sum(record.sent for record in hub.requests) < 2 * 0.01 * total
    weights = [r for r in hub.requests if ".safetensors" in r.path or r.path.endswith(".bin")]
    assert all(r.range or r.path.endswith(".json") for r in weights if r.method == "GET")
    assert all(not r.authorized for r in hub.requests if r.origin == "cdn")
    assert any(r.origin == "cdn" for r in hub.requests)
    assert plan["cost"]["download_bytes"] == 2 * total
    assert [len(model["files"]) for model in plan["models"]] == [1 + (kind == "sharded")] * 2


def test_checking_weights_reads_the_sample_only(
    hub: TestHub, deep: dict[str, Path], tmp_path: Path
) -> None:
    hub.create_repo("org/one", files_of(deep["single"]))
    hub.create_repo("org/two", files_of(deep["sharded"]))
    hub.create_repo("org/bin", files_of(deep["archive"]))
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        done = run("plan", "org/one", "org/two", "--check-weights", "--json")
        assert done.code == 0, done.err
        assert done.data["scope_decided"]
        assert {entry["verdict"] for entry in done.data["relatedness"]} == {"related"}
        total = weight_bytes(deep["single"]) + weight_bytes(deep["sharded"])
        sent = sum(record.sent for record in hub.requests)
        assert 0.1 * total < sent < 0.6 * total
        assert not [r for r in hub.requests if r.sent > 10_000_000]

        hub.fail("GET /org/bin/.*bin", status=404, times=None)
        assert_one_line(run("plan", "org/bin", "org/two"), "org/bin")
        hub.clear_faults()
        assert run("plan", "org/bin", "org/two").code == 0
        hub.truncate("GET /org/bin/.*bin", after=100, times=None)  # now that the headers are read
        done = run("plan", "org/bin", "org/two", "--check-weights")
        assert_one_line(done, "connection broke 3 times while reading pytorch_model.bin")


def test_a_merge_downloads_what_it_needs_once(hub: TestHub, tiny: Models, tmp_path: Path) -> None:
    junk: dict[str, bytes | Path] = {
        "tf_model.h5": b"h" * 5000,
        "optimizer.pt": b"o" * 5000,
        "pytorch_model.bin": b"b" * 5000,
        "training_args.bin": b"t" * 100,
        "runs/events.log": b"e" * 100,
        "LICENSE": b"The MIT License",
    }
    hub.create_repo("org/a", files_of(tiny.anchor) | junk)
    hub.create_repo("org/b", files_of(tiny.donor) | junk)
    place = {"hub": hub, "home": tmp_path / "home", "cwd": tmp_path / "cwd"}
    first = lwmm_hub("merge", "org/a", "org/b", "-o", "one", "--json", **place)
    assert first.code == 0, first.err
    got = {record.path.rpartition("/")[2] for record in hub.requests if "/resolve/" in record.path}
    assert got == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
        "README.md",
        "LICENSE",
    }
    whole = [
        r for r in hub.requests if "safetensors" in r.path and r.method == "GET" and not r.range
    ]
    assert len(whole) == 2

    hub.requests.clear()
    second = lwmm_hub("merge", "org/a", "org/b", "-o", "two", "--json", **place)
    assert second.data["sha256"] == first.data["sha256"]
    assert {line.split("?")[0].rsplit("/", 1)[0] for line in lines(hub)} <= {
        "GET /api/models/org",
        "GET /api/models/org/a/revision",
        "GET /api/models/org/b/revision",
    }

    hub.requests.clear()
    offline = {**place, "HF_HUB_OFFLINE": "1"}
    third = lwmm_hub("merge", "org/a", "org/b@main", "-o", "three", "--json", **offline)
    assert third.code == 0, third.err
    assert third.data["sha256"] == first.data["sha256"]
    assert hub.requests == []
    recipes = [
        (tmp_path / "cwd" / name / "lwmm_recipe.yaml").read_text() for name in ("one", "three")
    ]
    assert recipes[0] == recipes[1]
    commits = [hub.commits(f"org/{name}")[0].sha for name in "ab"]
    assert all(commit in recipes[1] for commit in commits)
    gone = lwmm_hub("plan", "org/a@v2", "org/b", **offline)
    assert_one_line(gone, "org/a@v2 is not in the cache")


def test_the_licence_of_a_nested_file_is_that_of_its_repository_offline_too(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    terms = "license: other\nlicense_name: mine\nlicense_link: LICENSE"
    card = f"---\n{terms}\n---\n".encode()
    nested = {f"run/{name}": content for name, content in files_of(tiny.anchor).items()}
    hub.create_repo("org/a", nested | {"README.md": card, "LICENSE": b"Ask me first."})
    hub.create_repo("org/b", files_of(tiny.donor, "license: mit"))
    place = {"hub": hub, "home": tmp_path / "home", "cwd": tmp_path / "cwd"}
    texts = []
    for name, how in (("online", {}), ("offline", {"HF_HUB_OFFLINE": "1"})):
        merge = ("merge", "org/a:run/model.safetensors", "org/b", "-o", name)
        done = lwmm_hub(*merge, **place, **how)
        assert done.code == 0, done.err
        texts.append((tmp_path / "cwd" / name / "LICENSE").read_text(encoding="utf-8"))
    assert "Ask me first." in texts[0]
    assert texts[1] == texts[0]


def test_files_of_absurd_size_are_never_downloaded(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    huge = {name: tmp_path / f"{name}.bytes" for name in ("settings", "tokenizer", "text")}
    for path, size in zip(huge.values(), (11 << 20, 65 << 20, 12 << 20), strict=True):
        with path.open("wb") as file:
            file.truncate(size)
    good = files_of(tiny.anchor)
    hub.create_repo("org/b", files_of(tiny.donor))
    hub.create_repo("org/config", {**good, "config.json": huge["settings"]})
    hub.create_repo("org/index", {"model.safetensors.index.json": huge["settings"]})
    hub.create_repo("org/beside", {**good, "tokenizer.json": huge["tokenizer"]})
    hub.create_repo("org/text", {**good, "README.md": huge["text"], "LICENSE": huge["text"]})
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        done = run("merge", "org/config", "org/b")
        assert_one_line(done, "org/config: config.json has 11534336 bytes: that is no config")
        done = run("merge", "org/index", "org/b")
        assert_one_line(done, "org/index: model.safetensors.index.json has 11534336 bytes")
        done = run("merge", "org/beside", "org/b")
        assert_one_line(done, "org/beside: tokenizer.json has 68157440 bytes: that is no part")
        assert run("merge", "org/text", "org/b").code == 0
    asked = {record.path for record in hub.requests if "/resolve/" in record.path}
    asked_of = {path.partition("/resolve/")[0].rpartition("/")[2] for path in asked}
    assert asked_of == {"b", "beside", "text"}
    assert not [p for p in asked if p.endswith(("tokenizer.json", "LICENSE"))]
    assert not [p for p in asked if "/text/" in p and p.endswith("README.md")]


def test_ranges_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    size, piece = 100 << 20, 3 << 20
    asked: list[int] = []

    def fetch(_: HubFile, start: int, stop: int) -> bytes:
        asked.append(start)
        return bytes(stop - start)

    monkeypatch.setattr(HubFile, "_fetch", fetch)
    file = HubFile(ModelReference("org/a", True), "0" * 40, "model.safetensors", size)
    for start in range(0, size - piece, piece):
        assert file.read(start, piece) == bytes(piece)
        assert sum(len(kept) for _, kept in file._kept) <= 16 << 20
    before = len(asked)
    file.read(asked[-1] + 5, 100)  # still there
    assert len(asked) == before
    file.read(0, 100)  # dropped
    assert asked[before:] == [0]


def test_an_old_pickle_is_downloaded_for_its_plan(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    values = with_classes(finetuned(ancestor(TINY, 1), 0), 5, 0)  # as `tiny.anchor`
    old = write_pth(tmp_path / "old.bin", spell_transformers_old(values, TINY), legacy=True)
    new = write_pth(tmp_path / "new.bin", spell_transformers_old(values, TINY))
    rest = files_of(tiny.anchor)
    del rest["model.safetensors"]
    hub.create_repo("org/legacy", {**rest, "pytorch_model.bin": old})
    hub.create_repo("org/archive", {**rest, "pytorch_model.bin": new})
    hub.create_repo(
        "org/in-a-folder", {"runs/best.pth": new, "runs/config.json": rest["config.json"]}
    )
    arrays = spell_transformers_old(values, TINY)
    zoo = pickle.dumps({"model": arrays, "__author__": "zoo", "matching_heuristics": True})
    hub.create_repo("org/zoo", {**rest, "model_final.pkl": zoo})
    hub.create_repo("org/safe", files_of(tiny.anchor))
    hub.create_repo("org/b", files_of(tiny.donor))
    hashes, configs = set(), set()
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        assert run("plan", "org/legacy", "org/b").code == 0
        for reference in (
            *("org/safe", "org/legacy", "org/archive", "org/in-a-folder:runs/best.pth"),
            "org/zoo:model_final.pkl",
        ):
            name = reference.partition(":")[0].rpartition("/")[2]
            done = run("merge", reference, "org/b", "-o", name, "--json")
            assert done.code == 0, done.err
            hashes.add(values_of(tmp_path / "cwd" / name / "model.safetensors"))
            configs.add((tmp_path / "cwd" / name / "config.json").read_bytes())
    assert len(hashes) == len(configs) == 1


def values_of(path: Path) -> str:
    """A checksum of names and values, whatever their order in the file."""
    digest = hashlib.sha256()
    for key, value in sorted(load_file(path).items()):
        digest.update(key.encode() + value.tobytes())
    return digest.hexdigest()


def test_pull_requests_tags_and_short_commits_are_revisions(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    first = hub.create_repo("org/run", files_of(tiny.anchor))
    hub.tag("org/run", "v1")
    hub.repository("org/run").open_pull_request("Better", "", "bob", draft=False)
    proposed = hub.add_commit("org/run", files_of(tiny.donor), revision="refs/pr/1")
    url = f"https://huggingface.co/org/run/tree/{first}"
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        for one, other in (
            ("org/run@v1", "org/run@refs/pr/1"),
            (f"org/run@{first[:10]}", f"hf://org/run@{proposed}"),
            (url, "hf://org/run@refs/pr/1"),
        ):
            done = run("plan", one, other, "--json")
            assert done.code == 0, done.err
            assert [model["commit"] for model in done.data["models"]] == [first, proposed]


def test_weights_that_arrive_damaged_are_refused_and_not_kept(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    """The client compares lengths alone; a recipe would state a sha256 that they do not have."""
    hub.create_repo("org/a", files_of(tiny.anchor))
    hub.create_repo("org/b", files_of(tiny.donor))
    (stored,) = tmp_path.rglob(f"objects/{hub.entry('org/b', 'model.safetensors').sha256}")
    sound = stored.read_bytes()
    with client(hub, tmp_path / "home", tmp_path / "cwd", xet=False) as run:
        stored.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        done = run("merge", "org/a", "org/b", "-o", "m")
        assert_one_line(done, "model.safetensors of org/b arrived damaged", "Try again")
        assert not list((tmp_path / "cwd").iterdir())
        stored.write_bytes(sound)
        assert run("merge", "org/a", "org/b", "-o", "m").code == 0
        assert run("verify", "m").code == 0
