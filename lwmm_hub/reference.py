"""Text <-> `ModelReference`: how a user names a model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode

from lwmm_hub.errors import ModelReferenceError

WEIGHTS = ("student", "ema", "imagenet")
STAGES = ("source", "target")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".pkl")
_CHOICES = {"weights": WEIGHTS, "stage": STAGES}
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^\s:?@]+))?(?::(?P<file>[^\s?][^?]*))?"
)
_HUB_URL = re.compile(
    rf"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>{_NAME}/{_NAME})"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[^/\s?]+)(?:/(?P<file>[^\s?]+))?)?/?"
)
_HOW = (
    "Write 'org/name', 'org/name@revision', 'org/name:file.pth', or the path of an existing "
    "folder or file."
)


@dataclass(frozen=True)
class StandIn:
    """A copy on disk of what the Hub has at a commit, found by the sha256 of its weight files."""

    path: str
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class ModelReference:
    """Where a model lives: a Hub repository at a revision, or a local folder or file.

    Attributes:
        location: repository id (`org/name`) or local path.
        on_hub: whether `location` is a repository id.
        revision: branch, tag, pull request (`refs/pr/1`) or commit; None is the default branch.
        file: path of one weight file inside the repository; None lets the tool choose.
        weights: which copy of a file with several: `student`, `ema` or `imagenet`.
        stage: which network of a CoNMix folder, that keeps one before and one after adaptation:
            `source` or `target`; None lets the tool choose.
        stand_in: what is read instead of the Hub, which may not have that commit any more.
    """

    location: str
    on_hub: bool = False
    revision: str | None = None
    file: str | None = None
    weights: str = "student"
    stage: str | None = None
    stand_in: StandIn | None = field(default=None, compare=False, repr=False)

    @classmethod
    def parse(cls, named: str | os.PathLike[str]) -> ModelReference:
        """Read a model's name as a user writes it. An existing local path wins; `hf://` never does.

        >>> ModelReference.parse("nvidia/mit-b0@main").revision
        'main'
        >>> str(ModelReference.parse("hf://org/name@refs/pr/1:run/latest.pth?weights=ema"))
        'org/name@refs/pr/1:run/latest.pth?weights=ema'

        Raises:
            ModelReferenceError: it names neither.
        """
        if not isinstance(named, str | os.PathLike):
            raise ModelReferenceError(f"a {type(named).__name__} names no model. {_HOW}")
        text = os.fspath(named)
        body, _, query = text.strip().partition("?")
        weights, stage = _choices(text, query)
        if not body:
            raise ModelReferenceError(f"{text!r} names no model. {_HOW}")
        if not is_text(body):
            raise ModelReferenceError(f"{text!r} is not written in UTF-8. Rename it.")
        if body.startswith(("hf://datasets/", "hf://spaces/", "hf://buckets/")):
            raise ModelReferenceError(f"{text!r} is no model repository of the Hub. {_HOW}")
        if body.startswith("hf://"):
            return replace(_parse_hub(text, _hf_url(body)), weights=weights, stage=stage)
        if found := _HUB_URL.fullmatch(body):
            revision = found["revision"] and unquote(found["revision"])
            return cls(found["repo"], True, revision, found["file"], weights, stage)
        path = _expanded(body)
        if _exists(path):
            return cls(str(path), weights=weights, stage=stage)
        if _looks_local(body):
            raise ModelReferenceError(f"There is no file or folder {body!r}. {_HOW}")
        return replace(_parse_hub(text, body), weights=weights, stage=stage)

    @property
    def pinned(self) -> bool:
        """Whether it is a commit of the Hub, which is what recipes and plans name."""
        return self.on_hub and is_commit(self.revision)

    @property
    def label(self) -> str:
        """What to call the model in public: never more of a local path than its last part."""
        if self.on_hub:
            return self.location
        path = Path(self.location)
        if path.name in {"", ".", ".."}:
            path = path.resolve()
        return path.stem if path.suffix in WEIGHT_SUFFIXES else path.name or "model"

    def __str__(self) -> str:
        """The text that `parse` reads back."""
        text = self.location
        if self.on_hub:
            text += f"@{self.revision}" if self.revision else ""
            text += f":{self.file}" if self.file else ""
        elif "/" not in text and "\\" not in text:
            text = f"./{text}"
        chosen = {"weights": self.weights} if self.weights != "student" else {}
        chosen |= {"stage": self.stage} if self.stage else {}
        return f"{text}?{urlencode(chosen)}" if chosen else text


def is_repository_id(text: str) -> bool:
    """Whether the Hub would take `text` as the id of a repository.

    >>> is_repository_id("org/name"), is_repository_id("org/na--me"), is_repository_id("name")
    (True, False, False)
    """
    plain = re.fullmatch(rf"{_NAME}/{_NAME}", text) is not None
    return plain and "--" not in text and ".." not in text and not text.endswith(".git")


def is_commit(revision: object) -> bool:
    """Whether a revision is a whole commit, which is the same for ever.

    >>> is_commit("0123456789abcdef0123456789abcdef01234567"), is_commit("main"), is_commit(None)
    (True, False, False)
    """
    return isinstance(revision, str) and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def is_text(name: str) -> bool:
    r"""Whether a name of a file is text that can be written down; Linux allows any bytes.

    >>> is_text("rän"), is_text("r\udce4n")
    (True, False)
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _expanded(body: str) -> Path:
    """The path with `~` and `~user` as folders; an unknown user's stays as it is written."""
    try:
        return Path(body).expanduser()
    except RuntimeError:
        return Path(body)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have, a folder that may not be read
        return False


def _choices(text: str, query: str) -> tuple[str, str | None]:
    """The values of `?weights=` and `?stage=`, checked."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in options.items():
        if name not in _CHOICES:
            known = " and ".join(f"'?{known}='" for known in _CHOICES)
            raise ModelReferenceError(
                f"{text!r}: unknown option {name!r}. Only {known} can follow."
            )
        if value not in _CHOICES[name]:
            raise ModelReferenceError(
                f"{text!r}: unknown {name} {value!r}. Choose one of {', '.join(_CHOICES[name])}."
            )
    return options.get("weights", "student"), options.get("stage")


def _hf_url(body: str) -> str:
    """`hf://org/name@revision/path`, as the Hub's file system spells it, in our spelling."""
    rest = body.removeprefix("hf://").removeprefix("models/")
    found = re.fullmatch(rf"({_NAME}/{_NAME}(?:@(?:refs/pr/\d+|[^/:]+))?)/([^:]+)", rest)
    return (
        f"{found[1]}:{found[2]}"
        if found and not re.fullmatch(rf"{_NAME}/{_NAME}@refs/pr/\d+", rest)
        else rest.rstrip("/")
    )


def _parse_hub(text: str, body: str) -> ModelReference:
    found = _HUB.fullmatch(body)
    if found is None:
        raise ModelReferenceError(f"{text!r} is neither a local path nor a Hub repository. {_HOW}")
    repo, file = found["repo"], found["file"]
    if not is_repository_id(repo):
        raise ModelReferenceError(f"{repo!r} is not a valid repository id of the Hub. {_HOW}")
    if file is not None and (file.startswith("/") or ".." in file.split("/")):
        raise ModelReferenceError(f"{text!r}: {file!r} is not a path inside a repository. {_HOW}")
    return ModelReference(repo, True, found["revision"], file)


def _looks_local(body: str) -> bool:
    """Whether a text that is no existing path was surely meant as one."""
    if body.startswith(("./", "../", "/", "~", ".\\", "\\")) or re.match(r"[A-Za-z]:[\\/]", body):
        return True
    return body.endswith(WEIGHT_SUFFIXES) and ":" not in body
