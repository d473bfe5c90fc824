"""How a user names a model: every spelling, back and forth, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lwmm_hub.errors import ModelReferenceError
from lwmm_hub.reference import WEIGHTS, ModelReference, is_repository_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# spelling -> repository, revision, file, weights
ON_THE_HUB: dict[str, tuple[str, str | None, str | None, str]] = {
    "org/name": ("org/name", None, None, "student"),
    " org/name\n": ("org/name", None, None, "student"),
    "org/name@main": ("org/name", "main", None, "student"),
    "org/name@refs/pr/1": ("org/name", "refs/pr/1", None, "student"),
    f"org/name@{COMMIT}": ("org/name", COMMIT, None, "student"),
    "org/name:file.pth": ("org/name", None, "file.pth", "student"),
    "org/name:runs/a b.pth": ("org/name", None, "runs/a b.pth", "student"),
    "org/name@v1:runs/latest.pth": ("org/name", "v1", "runs/latest.pth", "student"),
    "org/name?weights=ema": ("org/name", None, None, "ema"),
    "org/name@v1:latest.pth?weights=imagenet": ("org/name", "v1", "latest.pth", "imagenet"),
    "hf://org/name": ("org/name", None, None, "student"),
    "hf://org/name/": ("org/name", None, None, "student"),
    "hf://models/org/name@v1": ("org/name", "v1", None, "student"),
    "hf://org/name@v1/runs/latest.pth": ("org/name", "v1", "runs/latest.pth", "student"),
    "hf://org/name@refs/pr/7": ("org/name", "refs/pr/7", None, "student"),
    "hf://org/name@refs/pr/7/latest.pth": ("org/name", "refs/pr/7", "latest.pth", "student"),
    "hf://org/name:latest.pth?weights=ema": ("org/name", None, "latest.pth", "ema"),
    "https://huggingface.co/org/name": ("org/name", None, None, "student"),
    "https://hf.co/org/name/": ("org/name", None, None, "student"),
    "http://www.huggingface.co/org/name": ("org/name", None, None, "student"),
    "https://huggingface.co/org/name/tree/v1": ("org/name", "v1", None, "student"),
    "https://hf.co/org/name/tree/refs%2Fpr%2F1": ("org/name", "refs/pr/1", None, "student"),
    "https://huggingface.co/org/name/blob/main/a/b.pth": ("org/name", "main", "a/b.pth", "student"),
    "https://huggingface.co/org/name/resolve/main/b.pth": ("org/name", "main", "b.pth", "student"),
}  # fmt: skip

# spelling -> a piece of the message
REFUSED = {
    "": "names no model",
    "   ": "names no model",
    "?weights=ema": "names no model",
    "name": "neither a local path nor a Hub repository",
    "a b c": "neither a local path nor a Hub repository",
    "org/name/more": "neither a local path nor a Hub repository",
    "org/name@": "neither a local path nor a Hub repository",
    "org/name:": "neither a local path nor a Hub repository",
    "hf://datasets/org/name": "no model repository",
    "hf://name": "neither a local path nor a Hub repository",
    "https://example.com/org/name": "neither a local path nor a Hub repository",
    "org/na--me": "not a valid repository id",
    "org/na..me": "not a valid repository id",
    "org/name.git": "not a valid repository id",
    "org/name:../../secret.pth": "not a path inside a repository",
    "org/name:/etc/passwd": "not a path inside a repository",
    "hf://org/name@v1/../secret.pth": "not a path inside a repository",
    "./missing": "There is no file or folder './missing'",
    "/missing/model": "There is no file or folder",
    "~nobody-of-this-name/model": "There is no file or folder",
    "C:\\missing": "There is no file or folder",
    "runs/missing.pth": "There is no file or folder 'runs/missing.pth'",
    "org/name?weights=best": "unknown weights 'best'. Choose one of student, ema, imagenet",
    "org/name?weight=ema": "unknown option 'weight'",
    "org/name?stage=best": "unknown stage 'best'. Choose one of source, target",
    "\x00": "neither a local path nor a Hub repository",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("text", ON_THE_HUB)
def test_every_spelling_of_a_model_on_the_hub_is_read_and_read_back(text: str) -> None:
    found = ModelReference.parse(text)
    repo, revision, file, weights = ON_THE_HUB[text]
    assert found == ModelReference(repo, True, revision, file, weights)
    assert found.label == repo
    assert ModelReference.parse(str(found)) == found


@pytest.mark.parametrize("text", REFUSED)
def test_what_names_no_model_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(ModelReferenceError) as caught:
        ModelReference.parse(text)
    assert REFUSED[text] in str(caught.value)
    if "?" not in text or text.startswith("?"):
        assert "Write 'org/name'" in str(caught.value)


@pytest.mark.parametrize(
    ("query", "weights", "stage"),
    [
        ("stage=source", "student", "source"),
        ("stage=target&weights=ema", "ema", "target"),
        ("weights=ema&stage=target", "ema", "target"),
    ],
)
def test_the_network_of_a_folder_is_chosen_behind_the_name(
    query: str, weights: str, stage: str
) -> None:
    found = ModelReference.parse(f"org/name@v1?{query}")
    assert (found.weights, found.stage) == (weights, stage)
    assert ModelReference.parse(str(found)) == found


def test_what_exists_here_comes_before_the_hub_and_hf_asks_the_hub() -> None:
    Path("org/name").mkdir(parents=True)
    Path("model").mkdir()
    assert not ModelReference.parse("org/name").on_hub
    assert not ModelReference.parse("model").on_hub
    assert ModelReference.parse("hf://org/name").on_hub
    for text in ("org/name", "model", "./model", "model?weights=ema"):
        found = ModelReference.parse(text)
        assert ModelReference.parse(str(found)).label == found.label
        assert Path(ModelReference.parse(str(found)).location) == Path(found.location)


@pytest.mark.parametrize(
    ("location", "label"),
    [
        ("/home/alice/secret/run", "run"),
        ("/home/alice/secret/run/", "run"),
        ("/home/alice/secret/latest.pth", "latest"),
        ("/home/alice/secret/model.safetensors", "model"),
        ("/home/alice/secret/last.ckpt", "last"),
        ("/home/alice/secret/v1.5", "v1.5"),
        ("/", "model"),
    ],
)
def test_a_label_is_the_last_part_of_a_path(location: str, label: str) -> None:
    assert ModelReference(location).label == label


def test_a_label_of_the_folder_here_is_its_name(tmp_path: Path) -> None:
    assert ModelReference.parse(".").label == tmp_path.name
    assert ModelReference.parse("..").label == tmp_path.parent.name


@given(st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]))))
@example(["home", "alice", ".."])
@example(["home", "alice", ".pth"])
def test_a_label_never_holds_more_than_one_part(parts: list[str]) -> None:
    label = ModelReference("/" + "/".join(parts)).label
    assert label
    assert "/" not in label


NAME = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,10}[A-Za-z0-9_]", fullmatch=True)
REVISION = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,12}", fullmatch=True)
FILE = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_ .-]{0,8}(/[A-Za-z0-9_-]{1,8})?\.pth", fullmatch=True)


@given(
    st.builds("/".join, st.tuples(NAME, NAME)).filter(is_repository_id),
    st.none() | REVISION,
    st.none() | FILE,
    st.sampled_from(WEIGHTS),
)
def test_any_reference_to_the_hub_is_read_back(
    repo: str, revision: str | None, file: str | None, weights: str
) -> None:
    reference = ModelReference(repo, True, revision, file, weights)
    assert ModelReference.parse(str(reference)) == reference


@given(st.text(max_size=40))
@example("hf://")
@example("https://huggingface.co/")
@example("a" * 5000)
def test_any_text_is_a_reference_or_an_error_of_ours(text: str) -> None:
    try:
        found = ModelReference.parse(text)
    except ModelReferenceError:
        return
    assert found.location
