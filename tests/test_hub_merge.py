"""The straight line on the Hub: models in, a merge with its card out, and back again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from clients import all_text, client, files_of, lines, lwmm_hub, python
from enumerators import TINY, ancestor, finetuned, with_classes, write_transformers_folder
from hub import TestHub
from stories import Models

from lwmm_hub.card import assert_publishable, lint_card
from lwmm_hub.card.linting import FRONT_MATTER
from lwmm_hub.writing import sha256_of

PUSHED = {
    ".gitattributes",
    "README.md",
    "config.json",
    "layer_weights.svg",
    "lwmm_manifest.json",
    "lwmm_recipe.yaml",
    "model.safetensors",
    "preprocessor_config.json",
}

# every folder or repository@revision, loaded by transformers; prints checksums of their values
LOAD = """
import hashlib, json, sys
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

torch.set_num_threads(1)
found = {}
for name in sys.argv[1:]:
    name, _, revision = name.partition("@")
    model, info = AutoModelForSemanticSegmentation.from_pretrained(
        name, revision=revision or "main", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode() + value.numpy().tobytes())
    found[name, revision] = digest.hexdigest()
    with torch.no_grad():
        logits = model.eval()(torch.zeros(1, 3, 64, 64)).logits
    assert tuple(logits.shape) == (1, 5, 16, 16), logits.shape
print(json.dumps(list(found.values())))
"""


def manifest_of(files: dict[str, bytes]) -> dict:
    return json.loads(files["lwmm_manifest.json"])


def front_matter(files: dict[str, bytes]) -> dict:
    """The metadata of the pushed card, which has to be sound and to hide what is private."""
    card = files["README.md"].decode()
    assert lint_card(card, files=list(files)) == []
    assert_publishable(card)
    found = FRONT_MATTER.match(card)
    assert found is not None
    return yaml.safe_load(found[1])


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_one_command_publishes_a_merge(
    hub: TestHub, tiny: Models, tmp_path: Path, xet: bool
) -> None:
    hub.create_repo("org/a", files_of(tiny.anchor))
    hub.create_repo("org/b", files_of(tiny.donor, "license: apache-2.0\ndatasets: [x/rain]"))
    place = {"hub": hub, "home": tmp_path / "home", "cwd": tmp_path / "cwd", "xet": xet}
    done = lwmm_hub("merge", "org/a", "org/b", "--push", "alice/street", **place, token="alice")
    assert (done.code, done.err) == (0, "")
    [newest, initial] = hub.commits("alice/street")
    assert initial.title == "initial commit"
    url = f"{hub.endpoint}/alice/street/commit/{newest.sha}"
    assert done.out.splitlines()[-1] == url
    assert list((tmp_path / "cwd").iterdir()) == []

    assert hub.repository("alice/street").private
    files = hub.files("alice/street")
    assert set(files) == PUSHED
    assert (hub.entry("alice/street", "model.safetensors").xet_hash is not None) == xet
    fields = front_matter(files)
    assert fields["base_model"] == ["org/a", "org/b"]
    assert (fields["base_model_relation"], fields["license"]) == ("merge", "apache-2.0")
    assert (fields["datasets"], fields["pipeline_tag"]) == (["x/rain"], "image-segmentation")
    manifest = manifest_of(files)
    assert manifest["output"]["repository"] == "alice/street"
    config = json.loads(files["config.json"])
    assert config == json.loads((tiny.anchor / "config.json").read_text())

    with client(hub, tmp_path / "home", tmp_path / "again", xet=xet) as run:
        local = run("merge", "org/a", "org/b", "-o", "local", "--json")
        [digest] = local.data["sha256"].values()
        assert manifest["output"]["files"]["model.safetensors"]["sha256"] == digest
        assert hub.entry("alice/street", "model.safetensors").sha256 == digest

        # the same once more, from the folder or as one command: nothing to commit
        for arguments in (
            ("merge", "org/a", "org/b", "--push", "alice/street"),
            ("push", "local", "alice/street"),
        ):
            same = run(*arguments, token="alice")
            assert (same.code, same.err) == (0, "")
            assert same.out.splitlines()[-1] == url
        assert len(hub.commits("alice/street")) == 2

        push = ("merge", "org/a", "org/b", "--end", "0.9", "--push", "alice/street")
        done = run(*push, "--json", token="alice")
        [changed, *_] = hub.commits("alice/street")
        assert done.data["commit_url"].endswith(changed.sha)
        assert (done.data["output"], len(hub.commits("alice/street"))) == (None, 3)

        done = run(*push, "--max-shard-size", "100KB", "-q", token="alice")
        assert (
            done.out == f"{hub.endpoint}/alice/street/commit/{hub.commits('alice/street')[0].sha}\n"
        )
        sharded = hub.files("alice/street")
        index = json.loads(sharded["model.safetensors.index.json"])
        weights = {name for name in sharded if name.endswith(".safetensors")}
        assert weights == set(index["weight_map"].values())
        assert len(weights) >= 3
        pinned = f"alice/street@{hub.commits('alice/street')[0].sha}"

        assert run(*push, token="alice").code == 0
        assert set(hub.files("alice/street")) == PUSHED
        assert len(hub.commits("alice/street")) == 5
        assert run("merge", "org/a", "org/b", "--end", "0.9", "-o", "end").code == 0
        # a merge is a parent like any other, over Xet too
        assert run("merge", "alice/street", "org/b", "-o", "more", token="alice").code == 0
    names = ("alice/street", pinned, tmp_path / "again" / "end")
    loaded = python(LOAD, *names, **(place | {"token": "alice"}))
    assert len(loaded) == 3
    assert len(set(loaded)) == 1


def test_pull_requests_of_owners_and_of_strangers(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    hub.create_repo("org/a", files_of(tiny.anchor))
    hub.create_repo("org/b", files_of(tiny.donor))
    hub.create_repo("alice/street", files_of(tiny.third))
    before = hub.files("alice/street")
    for number, (name, xet) in enumerate((("alice", True), ("bob", True), ("bob", False)), start=1):
        with client(hub, tmp_path / f"home{number}", tmp_path / f"cwd{number}", xet=xet) as run:
            options = ("--end", f"0.{number}", "--push", "alice/street", "--create-pr")
            done = run("merge", "org/a", "org/b", *options, token=name)
        assert (done.code, done.err) == (0, "")
        url = f"{hub.endpoint}/alice/street/discussions/{number}"
        assert done.out.splitlines()[-1] == url
        request = hub.pull_requests("alice/street")[number - 1]
        assert (request.author, request.number) == (name, number)
        assert set(request.files) == PUSHED
        assert manifest_of(dict(request.files))["plan"]["options"]["end"] == number / 10
        assert front_matter(dict(request.files))["license"] == "mit"
    assert hub.files("alice/street") == before
    assert len(hub.commits("alice/street")) == 2


def test_a_request_for_what_is_there_already_is_none(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    hub.create_repo("org/a", files_of(tiny.anchor))
    hub.create_repo("org/b", files_of(tiny.donor))
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        assert run("merge", "org/a", "org/b", "-o", "m", token="alice").code == 0
        assert run("push", "m", "alice/street", token="alice").code == 0
        again = run("push", "m", "alice/street", "--create-pr", token="alice")
        assert again.code == 0, again.err
    assert hub.pull_requests("alice/street") == []
    commit = hub.commits("alice/street")[0].sha
    assert again.out.splitlines()[-1].endswith(f"alice/street/commit/{commit}")


def test_revisions_of_one_repository_are_several_models(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    hub.create_repo("org/run", files_of(tiny.donor))
    hub.branch("org/run", "step-2000")
    hub.add_commit("org/run", files_of(tiny.third))
    hub.branch("org/run", "step-3000")
    hub.add_commit("org/run", files_of(tiny.anchor))
    revisions = ("main", "step-3000", "step-2000")
    commits = [hub.commits("org/run", revision)[0].sha for revision in revisions]
    models = [f"org/run@{revision}" for revision in revisions]
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        done = run("merge", *models, "--push", "team/soup", token="alice")
        assert (done.code, done.err) == (0, "")
        files = hub.files("team/soup")
        plan = manifest_of(files)["plan"]
        assert [model["commit"] for model in plan["models"]] == commits
        assert len({model["label"] for model in plan["models"]}) == 3
        recipe = yaml.safe_load(files["lwmm_recipe.yaml"])
        assert [m["reference"] for m in recipe["models"]] == [f"hf://org/run@{c}" for c in commits]
        assert front_matter(files)["base_model"] in ("org/run", ["org/run"])
        card = files["README.md"].decode()
        assert all(commit in card for commit in commits)
        assert {layer["weights"][0] for layer in plan["layers"]} >= {1 / 3, 1.0}

        # the pushed recipe stands for the commits, wherever the branches go
        hub.add_commit("org/run", files_of(tiny.donor))
        (tmp_path / "cwd" / "recipe.yaml").write_bytes(files["lwmm_recipe.yaml"])
        again = run("merge", "--recipe", "recipe.yaml", "-o", "again", "--json")
        assert again.code == 0, again.err
        [digest] = again.data["sha256"].values()
        assert digest == hub.entry("team/soup", "model.safetensors").sha256
        assert run("verify", "team/soup", token="alice").code == 0


PYTHON = """
import json, sys
from pathlib import Path
import lwmm_hub as lw

step = sys.argv[1]
if step == "plan":
    plan = lw.plan("org/a", "org/b")
    assert not plan.scope_decided
    plan.save("plan.json")
    assert "<svg" in plan._repr_html_()
    print(json.dumps([model.commit for model in plan.models]))
elif step == "merge":
    plan = lw.MergePlan.load("plan.json")
    result = lw.merge(plan, output="merged")
    assert result.plan.scope_decided and result.commit_url is None
    url = result.push_to_hub("alice/python", message="From Python")
    assert url == result.push_to_hub("alice/python")
    model = result.load()
    print(json.dumps([url, type(model).__name__, dict(result.files), result.to_dict()["output"],
                      [m.commit for m in result.plan.models]]))
else:
    checkpoints = [lw.resolve(name, download=True) for name in ("org/a@step-1", "org/b")]
    headers = lw.resolve("org/b")
    assert headers.commit == checkpoints[1].commit
    key_map = lw.match(*checkpoints)
    plan = lw.plan_merge(key_map, checkpoints)
    Path("steps").mkdir()
    written = lw.write_model("steps", plan, checkpoints)
    result = lw.merge("org/a@step-1", "org/b", output="whole")
    assert {file.name: file.sha256 for file in written} == dict(result.files)
    card = lw.render_card("whole")
    assert card.read_text() == Path("whole/README.md").read_text()
    url = lw.publish("whole", "alice/steps", private=False)
    for name in lw.__all__:
        assert callable(getattr(lw, name)), name
    try:
        lw.publish("whole", "not a name")
    except lw.LwmmError as error:
        print(json.dumps([url, str(error)]))
"""


def test_the_same_from_python(hub: TestHub, tiny: Models, tmp_path: Path) -> None:
    first = hub.create_repo("org/a", files_of(tiny.anchor))
    other = hub.create_repo("org/b", files_of(tiny.donor))
    hub.branch("org/a", "step-1")
    place = {"hub": hub, "home": tmp_path / "home", "cwd": tmp_path / "cwd", "token": "alice"}
    assert python(PYTHON, "plan", **place) == [first, other]
    hub.add_commit("org/a", files_of(tiny.third))  # the branch moves; the plan does not
    url, name, files, output, commits = python(PYTHON, "merge", **place)
    assert url == f"{hub.endpoint}/alice/python/commit/{hub.commits('alice/python')[0].sha}"
    assert [commit.title for commit in hub.commits("alice/python")] == [
        "From Python",
        "initial commit",
    ]
    assert (name, output, commits) == ("SegformerForSemanticSegmentation", "merged", [first, other])
    assert hub.entry("alice/python", "model.safetensors").sha256 == files["model.safetensors"]

    url, refusal = python(PYTHON, "steps", **place)
    assert url.startswith(f"{hub.endpoint}/alice/steps/commit/")
    assert "'not a name' is not a repository id" in refusal
    assert not hub.repository("alice/steps").private
    assert hub.entry("alice/steps", "model.safetensors").sha256 == files["model.safetensors"]


HOSTILE = "</details><script>alert(1)</script>"
LABELS = [
    HOSTILE,
    "a|b\n---\nlicense: mit",
    "[x](javascript:alert(1))",
    "![x](https://evil.example/t.png)",
    "`{{ 7*7 }}`",
]


def test_hostile_names_are_inert_on_a_pushed_card(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    values = with_classes(finetuned(ancestor(TINY, 1), 0), 5, 0)
    folder = write_transformers_folder(tmp_path / "hostile", values, TINY, labels=LABELS)
    card = (
        'license: other\nlicense_name: "mine\\nlicense: mit\\n---\\n<script>"\n'
        'license_link: "javascript:alert(1)"\n'
        'datasets: ["<b>x</b>", "a/b", 3, "x\\n- y"]\ntags: ["<i>", "[l](http://evil.example)"]\n'
        "pipeline_tag: image-segmentation"
    )
    hub.create_repo("org/a", files_of(folder, card) | {"LICENSE": HOSTILE.encode()})
    hub.create_repo("org/b", files_of(tiny.donor, "license: [mit, 3]\nlicense_name: {a: b}"))
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        done = run("merge", "org/a", "org/b", "--push", "alice/inert", token="alice")
        assert done.code == 0, done.err
        planned = run("plan", "org/a", "org/b")
        assert planned.code == 0, planned.err
        verified = run("verify", "alice/inert", token="alice")
        assert verified.code == 0, verified.err
    files = hub.files("alice/inert")
    fields = front_matter(files)
    assert fields["license"] == "other"
    assert re.fullmatch(r"[a-z0-9.-]+", fields["license_name"])
    assert not str(fields.get("license_link", "")).startswith("javascript")
    assert fields["base_model"] == ["org/a", "org/b"]
    config = json.loads(files["config.json"])
    assert list(config["id2label"].values()) == LABELS
    assert manifest_of(files)["output"]["labels"] == LABELS
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    page = parser.enable("table").render(FRONT_MATTER.sub("", files["README.md"].decode()))
    text = re.sub(r"<code.*?</code>", "", page, flags=re.DOTALL)
    assert "<script" not in page
    assert 'href="javascript' not in page
    assert "evil.example/t.png" not in "".join(re.findall(r"<img[^>]*>", page))
    assert "<i>" not in text
    assert "<b>" not in text
    assert "<script" not in files["layer_weights.svg"].decode()


def test_neither_token_nor_path_leaves_the_machine(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    hub.create_repo("team/private-parent", files_of(tiny.donor), private=True)
    config = json.loads((tiny.anchor / "config.json").read_text())
    config |= {
        "_name_or_path": "/home/alice/secret/run",
        "backbone_config": {"_name_or_path": "/scratch/alice/mit", "depth": 1},
    }
    hub.options.redirect_to_cdn = True
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    local = write_transformers_folder(
        cwd / "runs" / "my-run", with_classes(finetuned(ancestor(TINY, 1), 0), 5, 0), TINY
    )
    (local / "config.json").write_text(json.dumps(config))
    (local / "README.md").write_text("---\nlicense: mit\n---\n")
    place = {"hub": hub, "home": home, "cwd": cwd, "token": "alice"}
    models = (str(local), "team/private-parent", str(tiny.pth))
    done = lwmm_hub(
        "merge", *models, "--push", "alice/clean", "--format", "agent", **place, xet=False
    )
    assert done.code == 0, done.err
    with client(hub, home, cwd, xet=False) as run:
        kept = run("merge", "runs/my-run", "team/private-parent", "-o", "kept", token="alice")
        assert kept.code == 0, kept.err
        pushed = run("push", "kept", "alice/clean-too", token="alice")
        assert pushed.code == 0, pushed.err
        files = hub.files("alice/clean")
        secrets = [*hub.tokens.values(), str(tmp_path), str(tiny.pth.parent), "/home/", "/scratch/"]
        for text in all_text(hub, files | hub.files("alice/clean-too"), done, kept, pushed):
            for secret in secrets:
                assert secret not in text, (secret, text[:300])
        cdn = [record for record in hub.requests if record.origin == "cdn"]
        assert {record.method for record in cdn} == {"GET", "PUT"}
        assert not any(record.authorized for record in cdn)

        recipe = yaml.safe_load(files["lwmm_recipe.yaml"])
        weights = local / "model.safetensors"
        assert recipe["models"][0] == {
            "local": "my-run",
            "sha256": {"model.safetensors": sha256_of(weights)},
        }
        assert recipe["models"][2] == {
            "local": "dusk",
            "sha256": {"dusk.pth": sha256_of(tiny.pth)},
        }
        assert manifest_of(files)["plan"]["models"][0]["reference"] == "my-run"
        assert front_matter(files)["base_model"] == ["team/private-parent"]
        assert json.loads(files["config.json"])["backbone_config"] == {"depth": 1}

        missing = run("verify", "alice/clean", token="alice")
        assert missing.code == 1
        assert "--parent my-run=PATH" in missing.err
        parents = ("--parent", f"my-run={local}", "--parent", f"dusk={tiny.pth}")
        again = run("verify", "alice/clean", *parents, "--json", token="alice")
        assert again.code == 0, again.err
        assert again.data["sha256"] == {
            "model.safetensors": hub.entry("alice/clean", "model.safetensors").sha256
        }
        wrong = ("--parent", f"my-run={tiny.anchor}", "--parent", f"dusk={tiny.wrapped_pth}")
        assert run("verify", "alice/clean", *wrong, token="alice").code == 5
    assert not [line for line in lines(hub) if "hf_" in line]


def test_verify_finds_labels_and_weights_that_were_changed_later(
    hub: TestHub, tiny: Models, tmp_path: Path
) -> None:
    hub.create_repo("org/a", files_of(tiny.anchor))
    hub.create_repo("org/b", files_of(tiny.donor))
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        done = run("merge", "org/a", "org/b", "--push", "alice/x", "--public", token="alice")
        assert done.code == 0, done.err
        good = hub.commits("alice/x")[0].sha
        assert run("verify", "alice/x").code == 0

        whole = hub.files("alice/x", good)
        config = whole["config.json"].replace(b'"road"', b'"sky"')
        hub.add_commit("alice/x", {"config.json": config}, author="mallory")
        relabelled = run("verify", "alice/x")
        assert (relabelled.code, relabelled.out) == (5, "")
        assert "its config.json is not the one of a new merge" in relabelled.err
        hub.add_commit("alice/x", {"config.json": whole["config.json"]})

        weights = bytearray(whole["model.safetensors"])
        weights[-1] ^= 1
        hub.add_commit("alice/x", {"model.safetensors": bytes(weights)}, author="mallory")
        tampered = run("verify", "alice/x", "--json")
        assert (tampered.code, tampered.out, tampered.err.count("\n")) == (5, "", 1)
        assert "model.safetensors" in tampered.err
        assert "Do not trust this copy" in tampered.err
        assert run("verify", f"alice/x@{good}").code == 0

        # and when the manifest says the same
        manifest = json.loads(hub.files("alice/x")["lwmm_manifest.json"])
        digest = hub.entry("alice/x", "model.safetensors").sha256
        manifest["output"]["files"]["model.safetensors"]["sha256"] = digest
        hub.add_commit("alice/x", {"lwmm_manifest.json": json.dumps(manifest).encode()})
        forged = run("verify", "alice/x")
        assert (forged.code, forged.out) == (5, "")
        assert "a new merge from the recipe" in forged.err

        # what is no manifest of ours, or no weights of the manifest's
        hub.add_commit("alice/x", {"lwmm_manifest.json": b"{}"})
        assert run("verify", "alice/x").code == 1
        extra = {"model-00001-of-00002.safetensors": bytes(weights)}
        hub.add_commit("alice/x", {**whole, **extra})
        assert "model-00001-of-00002.safetensors" in run("verify", "alice/x").err
        manifest["output"]["files"] = {"../model.safetensors": {"sha256": digest}}
        hub.add_commit("alice/x", {"lwmm_manifest.json": json.dumps(manifest).encode()})
        assert run("verify", "alice/x").code == 1
        plain = run("verify", "org/a")
        assert plain.code == 1
        assert "it was not pushed by lwmm-hub" in plain.err
        recipe = hub.files("alice/x")["lwmm_recipe.yaml"].decode()
        local = re.sub(r"reference: hf://org/a@\w+", f"reference: {tiny.anchor}", recipe)
        hub.add_commit("alice/x", {"lwmm_recipe.yaml": local.encode()})
        assert run("verify", "alice/x").code == 1
