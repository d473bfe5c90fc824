"""`TestHub`: the Hub on a random port of loopback, in a thread, and what a test may ask of it."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import uvicorn

from .accounts import TOKENS
from .application import build_application
from .cas import ContentStore
from .objects import ObjectStore
from .repositories import Commit, Entry, Gate, Repository, RepositoryType, Status
from .site import Options, Site
from .store import Store
from .traffic import Fault, RequestRecord

_START_TIMEOUT = 10.0

# Variables of the caller's environment that must not reach a client under test.
_FOREIGN_PREFIXES = ("HF_", "HUGGING", "HUB_", "TRANSFORMERS_", "DATASETS_")
_FOREIGN_NAMES = ("ALL_PROXY", "FTP_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True)
class PullRequest:
    """A pull request as a test sees it; `files` is what its reference holds."""

    number: int
    title: str
    description: str
    author: str
    status: Status
    reference: str
    sha: str
    files: Mapping[str, bytes]


class TestHub:
    """A Hub for one test. Get one with `with TestHub.start(folder) as hub`.

    Attributes:
        endpoint: What `HF_ENDPOINT` has to be.
        cdn: The second origin, see `Options.redirect_to_cdn`.
        options: What a test may change while the Hub runs.
        requests: Every request so far, in the order they came in; `clear()` it at will.
        tokens: Name of an account -> token: `alice`, `alice-read`, `bob`, `bob-read`. alice is a
            member of the organisation `team`.
    """

    __test__ = False
    tokens: ClassVar[Mapping[str, str]] = TOKENS

    def __init__(self, site: Site) -> None:
        self._site = site
        self._traffic = build_application(site)
        self.endpoint = site.endpoint
        self.cdn = site.cdn
        self.options = site.options
        self.requests: list[RequestRecord] = self._traffic.requests

    @classmethod
    @contextmanager
    def start(cls, folder: Path) -> Iterator[TestHub]:
        """Serve a new, empty Hub, which keeps its data in a fresh folder inside `folder`."""
        data = Path(tempfile.mkdtemp(dir=folder, prefix="hub-"))
        with _listen() as hub_socket, _listen() as cdn_socket:
            objects = ObjectStore(data / "objects")
            endpoint = _url(hub_socket)
            site = Site(
                endpoint=endpoint,
                cdn=_url(cdn_socket),
                objects=objects,
                store=Store(objects),
                contents=ContentStore(data / "xorbs", f"{endpoint}/_cas"),
                options=Options(),
            )
            hub = cls(site)
            hub._traffic.cdn_port = cdn_socket.getsockname()[1]
            with hub._serve([hub_socket, cdn_socket]):
                yield hub

    # ---- what is there -------------------------------------------------------------------------

    def create_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path] | None = None,
        *,
        private: bool = False,
        gated: bool | Gate = False,
        revision: str = "main",
        message: str = "Add files",
        repo_type: RepositoryType = "model",
    ) -> str:
        """Create a repository and return the sha of its newest commit.

        Its first commit holds only `.gitattributes`, as on the real Hub; `files` are the second.
        Large and binary files are kept in LFS without a Xet hash. A file given as a path is copied.
        """
        gate: Gate = "auto" if gated is True else gated
        author = repo_id.split("/")[0]
        repository = self._site.store.create(
            repo_type, repo_id, author, private=private, gated=gate
        )
        if not files:
            return repository.resolve("main").sha
        return self.add_commit(
            repo_id, files, revision=revision, message=message, repo_type=repo_type
        )

    def add_commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path],
        *,
        revision: str = "main",
        message: str = "Add files",
        delete: Iterable[str] = (),
        author: str | None = None,
        repo_type: RepositoryType = "model",
    ) -> str:
        """Commit to a branch (made from `main` if missing) or to `refs/pr/N`; returns the sha."""
        repository = self.repository(repo_id, repo_type)
        commit = self._site.store.add_files(
            repository,
            files,
            revision=revision,
            message=message,
            author=author or repository.namespace,
            delete=delete,
        )
        return commit.sha

    def branch(self, repo_id: str, branch: str, revision: str = "main") -> None:
        """Make a branch, or set it, to where `revision` is."""
        repository = self.repository(repo_id)
        repository.references[f"refs/heads/{branch}"] = repository.resolve(revision).sha

    def tag(self, repo_id: str, tag: str, revision: str = "main") -> None:
        """Make a tag, or set it, to where `revision` is."""
        repository = self.repository(repo_id)
        repository.tags[tag] = repository.resolve(revision).sha

    def move(self, old_id: str, new_id: str, repo_type: RepositoryType = "model") -> None:
        """Rename a repository; requests to the old name are redirected (307) from now on."""
        self._site.store.move(self.repository(old_id, repo_type), new_id)

    def delete(self, repo_id: str, repo_type: RepositoryType = "model") -> None:
        """Delete a repository: nobody finds it from now on."""
        self._site.store.delete(self.repository(repo_id, repo_type))

    def grant(self, repo_id: str, user: str) -> None:
        """Let a user through the gate of a gated repository."""
        self.repository(repo_id).granted.add(user)

    def repository(self, repo_id: str, repo_type: RepositoryType = "model") -> Repository:
        """The repository itself, for what has no method here.

        Raises:
            KeyError: When there is none of this name (an old name does not count).
        """
        return self._site.store.repositories[repo_type, repo_id]

    def exists(self, repo_id: str, repo_type: RepositoryType = "model") -> bool:
        return (repo_type, repo_id) in self._site.store.repositories

    def files(
        self, repo_id: str, revision: str = "main", repo_type: RepositoryType = "model"
    ) -> dict[str, bytes]:
        """Path -> content at a revision, `.gitattributes` included, sorted by path."""
        return self._contents(self.repository(repo_id, repo_type).resolve(revision))

    def entry(self, repo_id: str, path: str, revision: str = "main") -> Entry:
        """How a file is stored: its sha256 if in LFS, its Xet hash if it came over Xet."""
        return self.repository(repo_id).resolve(revision).tree[path]

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """The commits of a revision, newest first."""
        return list(self.repository(repo_id).history(revision))

    def pull_requests(self, repo_id: str) -> list[PullRequest]:
        """The pull requests of a repository, oldest first."""
        repository = self.repository(repo_id)
        return [
            PullRequest(
                number=discussion.number,
                title=discussion.title,
                description=discussion.description,
                author=discussion.author,
                status=discussion.status,
                reference=discussion.reference,
                sha=repository.references[discussion.reference],
                files=self._contents(repository.resolve(discussion.reference)),
            )
            for discussion in repository.discussions.values()
            if discussion.is_pull_request
        ]

    def _contents(self, commit: Commit) -> dict[str, bytes]:
        read = self._site.objects.read
        return {path: read(entry.oid) for path, entry in sorted(commit.tree.items())}

    # ---- what goes over the wire ---------------------------------------------------------------

    def fail(
        self,
        pattern: str,
        *,
        status: int = 500,
        times: int | None = 1,
        headers: Mapping[str, str] | None = None,
    ) -> Fault:
        r"""Answer the next `times` requests (None: all) whose line matches with an error.

        Patterns are searched in `METHOD /path?query`, as in `r"^POST .*/commit/main"`. The client
        repeats most calls (not the HEAD of a file, not the info of a model) up to five times within
        ~23 s after 408, 429 and 5xx; with the header `Retry-After: 0` it does not wait for long.
        `Fault.hits` counts.
        """
        return self._add_fault(Fault(pattern, times, status=status, headers=dict(headers or {})))

    def truncate(self, pattern: str, *, after: int = 0, times: int | None = 1) -> Fault:
        """Drop the connection after `after` bytes of the body of the next matching answers.

        The client writes in blocks of 10 MB: a shorter download starts again from the beginning.
        """
        return self._add_fault(Fault(pattern, times, cut_after=after))

    def delay(self, pattern: str, seconds: float, *, times: int | None = 1) -> Fault:
        """Let the next matching requests wait before they are answered."""
        return self._add_fault(Fault(pattern, times, delay=seconds))

    def clear_faults(self) -> None:
        self._traffic.faults.clear()

    def _add_fault(self, fault: Fault) -> Fault:
        self._traffic.faults.append(fault)
        return fault

    # ---- the client in another process ---------------------------------------------------------

    def environment(
        self, home: Path, token: str | None = None, *, xet: bool = True
    ) -> dict[str, str]:
        """The environment of a subprocess whose Hub client talks to this Hub and to nothing else.

        Args:
            home: A fresh folder for the client's caches. (A shared one makes hf_xet skip uploads
                that another Hub has seen.)
            token: A token, or the name of an account in `tokens`; None is anonymous.
            xet: Whether the client may use Xet; without, it uploads over LFS and reads over HTTP.
        """
        variables = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_FOREIGN_PREFIXES) and name.upper() not in _FOREIGN_NAMES
        }
        variables |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "NO_PROXY": "127.0.0.1",
        }
        if token is not None:
            variables["HF_TOKEN"] = self.tokens.get(token, token)
        return variables

    # ---- the server ----------------------------------------------------------------------------

    @contextmanager
    def _serve(self, sockets: list[socket.socket]) -> Iterator[None]:
        """Run uvicorn in a thread until the block ends."""
        config = uvicorn.Config(
            self._traffic,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=server.run, args=(sockets,), name=f"hub {self.endpoint}", daemon=True
        )
        thread.start()
        try:
            deadline = time.monotonic() + _START_TIMEOUT
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise RuntimeError("The test Hub did not start")
                time.sleep(0.005)
            yield
        finally:
            server.should_exit = True
            thread.join(_START_TIMEOUT)
            if thread.is_alive():
                raise RuntimeError("The test Hub did not stop")


def _listen() -> socket.socket:
    """A socket on a random free port of loopback."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    return listener


def _url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"
