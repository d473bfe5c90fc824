"""The test Hub against the real client, in this process and in others."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    get_session,
    hf_hub_url,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .server import TestHub

CARD = b"---\nlicense: mit\ntags: [merge]\nbase_model: [team/a, team/b]\n---\n# A model\n"

UPLOAD = """
import sys
from huggingface_hub import HfApi
repo, folder, create_pr = sys.argv[1], sys.argv[2], sys.argv[3] == "pr"
info = HfApi().upload_folder(repo_id=repo, folder_path=folder, create_pr=create_pr)
print(info.oid, info.pr_url)
"""

DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], local_dir=sys.argv[2]))
"""


def run_client(
    hub: TestHub, home: Path, code: str, *arguments: str, token: str = "alice", xet: bool = True
) -> str:
    """Run Python in a process of its own against the Hub; what it prints comes back."""
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=hub.environment(home, token, xet=xet),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def api_of(hub: TestHub, name: str | None = None) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.tokens[name] if name else False)


def lines(hub: TestHub) -> list[str]:
    return [record.line for record in hub.requests]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder whose weights need every way hf_xet packs a chunk: raw, LZ4, grouped LZ4."""
    folder = tmp_path / "model"
    (folder / "nested").mkdir(parents=True)
    (folder / "README.md").write_bytes(CARD)
    (folder / "config.json").write_text('{"model_type": "segformer"}')
    floats = struct.pack("<150000f", *(1 + index / 1e6 for index in range(150_000)))
    weights = os.urandom(400_000) + bytes(400_000) + floats + b"layer.weight" * 20_000
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "nested" / "optimizer.bin").write_bytes(weights[::-1])
    (folder / "nested" / "notes é.txt").write_text("nested, and not ASCII")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_an_uploaded_folder_comes_back_byte_for_byte(
    hub: TestHub, tmp_path: Path, model_folder: Path, xet: bool
) -> None:
    hub.create_repo("team/model")
    run_client(hub, tmp_path / "a", UPLOAD, "team/model", str(model_folder), "no", xet=xet)

    stored = hub.files("team/model")
    stored.pop(".gitattributes")
    assert stored == contents(model_folder)
    assert (hub.entry("team/model", "model.safetensors").xet_hash is not None) == xet
    assert any("/_cas/v1/xorbs/" in line for line in lines(hub)) == xet
    assert any(line.startswith("PUT /_lfs/") for line in lines(hub)) != xet

    for reader_uses_xet in (True, False):
        target = tmp_path / f"target-{reader_uses_xet}"
        hub.requests.clear()
        run_client(
            hub,
            tmp_path / f"home-{reader_uses_xet}",
            DOWNLOAD,
            "team/model",
            str(target),
            xet=reader_uses_xet,
        )
        assert contents(target) == contents(model_folder) | {
            ".gitattributes": hub.files("team/model")[".gitattributes"]
        }
        over_xet = any("/_cas/v1/reconstructions/" in line for line in lines(hub))
        assert over_xet == (xet and reader_uses_xet)


def test_large_files_may_go_over_lfs_in_parts(
    hub: TestHub, tmp_path: Path, model_folder: Path
) -> None:
    hub.create_repo("team/model")
    hub.options.multipart_chunk = 300_000
    hub.options.redirect_to_cdn = True
    run_client(hub, tmp_path / "a", UPLOAD, "team/model", str(model_folder), "no", xet=False)
    weights = (model_folder / "model.safetensors").read_bytes()
    assert hub.files("team/model")["model.safetensors"] == weights
    parts = [record for record in hub.requests if "/parts/" in record.path]
    assert len(parts) >= 2 * len(weights) // 300_000
    assert {(record.origin, record.authorized) for record in parts} == {("cdn", False)}


def test_ranges_are_honoured_and_logged(hub: TestHub) -> None:
    content = bytes(range(256)) * 10
    hub.create_repo("team/model", {"a.bin": content})
    url = hf_hub_url("team/model", "a.bin", endpoint=hub.endpoint)
    session = get_session()
    for header, expected in {
        "bytes=10-19": content[10:20],
        "bytes=2500-": content[2500:],
        "bytes=-7": content[-7:],
        "bytes=2550-99999": content[2550:],
    }.items():
        response = session.get(url, headers={"Range": header})
        assert (response.status_code, response.content) == (206, expected)
        assert (hub.requests[-1].range, hub.requests[-1].sent) == (header, len(expected))
    assert session.get(url, headers={"Range": "bytes=2560-"}).status_code == 416
    file_system = HfFileSystem(endpoint=hub.endpoint, token=False, skip_instance_cache=True)
    with file_system.open("team/model/a.bin", block_size=256) as file:
        file.seek(300)
        assert file.read(5) == content[300:305]


def test_safetensors_metadata_is_read_by_ranges(hub: TestHub) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [50000], "data_offsets": [0, 200000]}})
    content = struct.pack("<Q", len(header)) + header.encode() + bytes(200_000)
    hub.create_repo("team/model", {"model.safetensors": content})
    metadata = api_of(hub).get_safetensors_metadata("team/model")
    assert metadata.parameter_count == {"F32": 50000}
    assert sum(record.sent for record in hub.requests if "resolve" in record.path) < 110_000


def test_a_private_repository_exists_for_its_owners_only(hub: TestHub) -> None:
    hub.create_repo("team/secret", {"config.json": b"{}"}, private=True)
    for stranger in (api_of(hub), api_of(hub, "bob")):
        for repo_id in ("team/secret", "team/missing", "nobody"):
            with pytest.raises(RepositoryNotFoundError):
                stranger.model_info(repo_id)
    assert api_of(hub, "alice-read").model_info("team/secret").private
    assert [model.id for model in api_of(hub, "alice").list_models()] == ["team/secret"]
    assert list(api_of(hub).list_models()) == []


def test_a_gated_repository_shows_its_info_and_not_its_files(hub: TestHub, tmp_path: Path) -> None:
    hub.create_repo("team/gated", {"config.json": b"{}"}, gated="manual")
    bob = api_of(hub, "bob")
    assert bob.model_info("team/gated").gated == "manual"
    for stranger in (api_of(hub), bob):
        with pytest.raises(GatedRepoError):
            stranger.hf_hub_download("team/gated", "config.json", cache_dir=tmp_path)
    hub.grant("team/gated", "bob")
    assert bob.hf_hub_download("team/gated", "config.json", cache_dir=tmp_path)


def test_missing_things_have_the_errors_of_the_client(hub: TestHub, tmp_path: Path) -> None:
    hub.create_repo("team/model", {"config.json": b"{}"})
    api = api_of(hub)
    with pytest.raises(RevisionNotFoundError):
        api.model_info("team/model", revision="nope")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download("team/model", "config.json", revision="nope", cache_dir=tmp_path)
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download("team/model", "nope.json", cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("team/nope", "config.json", cache_dir=tmp_path)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(endpoint=hub.endpoint, token="hf_unknown").model_info("team/model")
    assert get_session().get(f"{hub.endpoint}/api/agent-harnesses").status_code == 404
    assert get_session().post(f"{hub.endpoint}/_cas/v1/xorb-grants/x").status_code == 404


def test_a_renamed_repository_redirects(hub: TestHub, tmp_path: Path) -> None:
    sha = hub.create_repo("team/old", {"config.json": b"{}"}, private=True)
    hub.move("team/old", "team/middle")
    api_of(hub, "alice").move_repo("team/middle", "team/new")
    alice = api_of(hub, "alice")
    for name in ("team/old", "team/middle"):
        assert alice.model_info(name).id == "team/new"
        path = alice.hf_hub_download(name, "config.json", cache_dir=tmp_path)
        assert Path(path).read_bytes() == b"{}"
    assert alice.model_info("team/old", revision=sha).sha == sha
    assert 307 in {record.status for record in hub.requests}


def test_info_describes_the_files_and_the_card(hub: TestHub) -> None:
    sha = hub.create_repo("team/model", {"README.md": CARD, "a/model.bin": b"\0" * 9})
    hub.tag("team/model", "v1")
    hub.branch("team/model", "next")
    newer = hub.add_commit("team/model", {"b.txt": b"b"}, revision="next", delete=["README.md"])
    api = api_of(hub)
    info = api.model_info("team/model", files_metadata=True, revision="v1")
    assert info.sha == sha
    assert info.card_data is not None
    assert info.card_data.license == "mit"
    assert {"merge", "license:mit", "base_model:team/a"} <= set(info.tags or ())
    large = next(sibling for sibling in info.siblings or () if sibling.rfilename == "a/model.bin")
    assert large.lfs is not None
    assert large.lfs.sha256 == hub.entry("team/model", "a/model.bin").sha256
    assert api.model_info("team/model", expand=["sha"]).siblings is None

    references = api.list_repo_refs("team/model")
    assert {branch.name for branch in references.branches} == {"main", "next"}
    assert [tag.name for tag in references.tags] == ["v1"]
    assert [
        commit.commit_id for commit in api.list_repo_commits("team/model", revision="next")
    ] == [commit.sha for commit in hub.commits("team/model", "next")]
    tree = api.list_repo_tree("team/model", recursive=True, revision=newer[:8])
    assert [entry.path for entry in tree] == [".gitattributes", "a", "a/model.bin", "b.txt"]
    found = api.get_paths_info("team/model", ["a", "a/model.bin", "no"])
    assert [entry.path for entry in found] == ["a", "a/model.bin"]


def test_repositories_branches_and_tags_are_managed(hub: TestHub) -> None:
    alice = api_of(hub, "alice")
    assert alice.whoami()["orgs"][0]["name"] == "team"
    url = alice.create_repo("team/model", private=True)
    assert url.repo_id == "team/model"
    assert alice.create_repo("team/model", exist_ok=True).repo_id == "team/model"
    with pytest.raises(HfHubHTTPError, match="409"):
        alice.create_repo("team/model")
    with pytest.raises(HfHubHTTPError, match="403"):
        api_of(hub, "bob").create_repo("team/other")
    with pytest.raises(HfHubHTTPError, match="403"):
        api_of(hub, "alice-read").create_repo("team/other")
    alice.update_repo_settings("team/model", visibility="public", gated="auto")
    assert (hub.repository("team/model").private, hub.repository("team/model").gated) == (
        False,
        "auto",
    )
    alice.create_branch("team/model", branch="a/b")
    alice.create_tag("team/model", tag="v1", revision="a/b")
    alice.delete_branch("team/model", branch="a/b")
    alice.delete_tag("team/model", tag="v1")
    alice.delete_repo("team/model")
    assert not hub.exists("team/model")


def test_a_pull_request_comes_with_a_commit(hub: TestHub) -> None:
    hub.create_repo("team/model", {"config.json": b"{}"})
    bob = api_of(hub, "bob")
    change = [CommitOperationAdd("config.json", b'{"a": 1}')]
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.create_commit("team/model", change, commit_message="Change")
    commit = bob.create_commit("team/model", change, commit_message="Change", create_pr=True)
    assert (commit.pr_num, commit.pr_revision) == (1, "refs/pr/1")

    [pull_request] = hub.pull_requests("team/model")
    assert (pull_request.title, pull_request.author) == ("Change", "bob")
    assert (pull_request.status, pull_request.sha) == ("open", commit.oid)
    assert bob.model_info("team/model", revision="refs/pr/1").sha == commit.oid
    assert hub.files("team/model")["config.json"] == b"{}"

    hub.add_commit("team/model", {"other.txt": b"in between"})
    api_of(hub, "alice").merge_pull_request("team/model", 1)
    merged = hub.files("team/model")
    assert (merged["config.json"], merged["other.txt"]) == (b'{"a": 1}', b"in between")
    assert api_of(hub).get_discussion_details("team/model", 1).status == "merged"


@pytest.mark.parametrize(("xet", "status"), [(True, "draft"), (False, "open")], ids=["xet", "lfs"])
def test_a_folder_becomes_a_pull_request(
    hub: TestHub, tmp_path: Path, model_folder: Path, xet: bool, status: str
) -> None:
    hub.create_repo("team/model")
    upload = ["team/model", str(model_folder), "pr"]
    printed = run_client(hub, tmp_path / "home", UPLOAD, *upload, token="bob", xet=xet)
    [pull_request] = hub.pull_requests("team/model")
    url = f"{hub.endpoint}/team/model/discussions/1"
    assert printed.split() == [pull_request.sha, url]
    assert (pull_request.author, pull_request.status) == ("bob", status)
    assert contents(model_folder).items() <= pull_request.files.items()
    assert list(hub.files("team/model")) == [".gitattributes"]

    api_of(hub, "alice").merge_pull_request("team/model", 1)
    printed = run_client(hub, tmp_path / "home", UPLOAD, *upload, token="bob", xet=xet)
    assert printed.split() == [hub.commits("team/model")[0].sha, "None"]
    assert len(hub.pull_requests("team/model")) == 1


def test_a_stale_parent_is_refused(hub: TestHub) -> None:
    stale = hub.create_repo("team/model", {"config.json": b"{}"})
    newest = hub.add_commit("team/model", {"config.json": b"[]"})
    alice = api_of(hub, "alice")
    change = [CommitOperationDelete("config.json")]
    for status in (412, 409):
        hub.options.stale_parent_status = status
        with pytest.raises(HfHubHTTPError, match=str(status)):
            alice.create_commit("team/model", change, commit_message="Delete", parent_commit=stale)
    alice.create_commit("team/model", change, commit_message="Delete", parent_commit=newest)
    assert list(hub.files("team/model")) == [".gitattributes"]


def test_a_bad_card_is_refused_before_the_commit(hub: TestHub) -> None:
    hub.create_repo("team/model")
    for card in (b"---\nlicense: apache\n---\n", b"---\nbase_model: 3\n---\n", b"---\n- [\n---\n"):
        with pytest.raises(ValueError, match="Invalid metadata"):
            api_of(hub, "alice").upload_file(
                path_or_fileobj=card, path_in_repo="README.md", repo_id="team/model"
            )
    assert len(hub.commits("team/model")) == 1


def test_the_token_is_not_sent_to_the_second_origin(hub: TestHub, tmp_path: Path) -> None:
    content = os.urandom(5000)
    hub.create_repo("team/model", {"a.bin": content, "config.json": b"{}"}, private=True)
    hub.options.redirect_to_cdn = True
    alice = api_of(hub, "alice-read")
    path = alice.hf_hub_download("team/model", "a.bin", cache_dir=tmp_path)
    assert Path(path).read_bytes() == content
    assert {(record.origin, record.authorized) for record in hub.requests} == {
        ("hub", True),
        ("cdn", False),
    }
    [from_cdn] = [record for record in hub.requests if record.origin == "cdn"]
    assert from_cdn.sent == len(content)


def test_failures_are_injected_and_counted(hub: TestHub) -> None:
    hub.create_repo("team/model", {"config.json": b"{}"})
    fault = hub.fail(r"^GET /api/models/team/model", status=429, headers={"Retry-After": "0"})
    with pytest.raises(HfHubHTTPError, match="429"):
        api_of(hub).model_info("team/model")
    assert api_of(hub).model_info("team/model")
    assert fault.hits == 1
    assert [record.status for record in hub.requests] == [429, 200]

    retried = hub.fail(r"/tree/main", status=503, headers={"Retry-After": "0"}, times=2)
    assert list(api_of(hub).list_repo_tree("team/model"))
    assert retried.hits == 2


def test_a_cut_download_is_resumed(hub: TestHub, tmp_path: Path) -> None:
    content = os.urandom(12_000_000)
    hub.create_repo("team/model", {"a.bin": content})
    hub.truncate(r"^GET .*/resolve/", after=11_000_000)
    path = api_of(hub).hf_hub_download("team/model", "a.bin", cache_dir=tmp_path)
    assert Path(path).read_bytes() == content
    first, second = (record for record in hub.requests if record.method == "GET")
    assert first.sent == 11_000_000
    assert second.range is not None
    assert second.sent < len(content)


def test_an_answer_may_be_late(hub: TestHub) -> None:
    hub.create_repo("team/model")
    hub.delay(r"/api/models/", 0.3)
    started = time.monotonic()
    api_of(hub).model_info("team/model")
    assert time.monotonic() - started >= 0.3


def test_a_hub_is_empty_at_start_and_gone_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("a file given by its path")
    for _ in range(2):
        with TestHub.start(tmp_path) as hub:
            assert not hub.exists("team/model")
            hub.create_repo("team/model", {"file.txt": file})
            port = int(hub.endpoint.rsplit(":", 1)[1])
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            pass


def test_the_environment_of_a_subprocess_knows_no_other_hub(
    hub: TestHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    environment = hub.environment(tmp_path, xet=False)
    assert "HF_TOKEN" not in environment
    assert "https_proxy" not in environment
    assert environment["HF_HUB_DISABLE_XET"] == "1"
    assert hub.environment(tmp_path, "bob")["HF_TOKEN"] == hub.tokens["bob"]
