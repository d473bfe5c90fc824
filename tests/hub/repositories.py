"""A repository as values: entries, commits, references, discussions. No HTTP, no disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

from .errors import HubError, revision_not_found

RepositoryType = Literal["model", "dataset", "space"]
Gate = Literal[False, "auto", "manual"]
Status = Literal["draft", "open", "closed", "merged"]


def now() -> str:
    """The time in the only format the client parses."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class Entry:
    """A file of a tree: a git blob, or a pointer to an LFS object (perhaps kept in Xet)."""

    blob_oid: str
    size: int
    sha256: str | None = None
    xet_hash: str | None = None
    pointer_size: int = 0

    @property
    def oid(self) -> str:
        """The name of the content in the object store, which is also the ETag."""
        return self.sha256 or self.blob_oid


Tree = Mapping[str, Entry]


@dataclass(frozen=True)
class Commit:
    """A commit; its sha depends on content and history only, so runs can be compared."""

    sha: str
    title: str
    message: str
    author: str
    date: str
    parent: str | None
    tree: Tree


@dataclass
class Discussion:
    """A discussion, or a pull request when it has a base branch."""

    number: int
    title: str
    author: str
    status: Status
    base: str | None = None
    fork: str | None = None
    merge_commit: str | None = None
    created: str = field(default_factory=now)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_pull_request(self) -> bool:
        return self.base is not None

    @property
    def reference(self) -> str:
        return f"refs/pr/{self.number}"

    @property
    def description(self) -> str:
        """The text of the first comment."""
        return str(self.events[0]["data"]["latest"]["raw"])

    def add_event(self, kind: str, author: str, data: dict[str, Any]) -> dict[str, Any]:
        """Append one line of history and return it as the API shows it."""
        event = {
            "id": f"{self.number:012x}{len(self.events):012x}",
            "type": kind,
            "createdAt": now(),
            "author": {"name": author},
            "data": data,
        }
        self.events.append(event)
        return event

    def add_comment(self, author: str, text: str) -> dict[str, Any]:
        latest = {"raw": text, "html": text, "updatedAt": now(), "author": {"name": author}}
        data = {"edited": False, "hidden": False, "latest": latest, "history": []}
        return self.add_event("comment", author, data)


@dataclass
class Repository:
    """A repository: commits by sha, references to them, and who may see it."""

    type: RepositoryType
    id: str
    private: bool = False
    gated: Gate = False
    granted: set[str] = field(default_factory=set)
    created: str = field(default_factory=now)
    references: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    discussions: dict[int, Discussion] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def url_path(self) -> str:
        """The path of its page: datasets and spaces have a prefix, models have none."""
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"

    def resolve(self, revision: str) -> Commit:
        """The commit a branch, a pull request, a tag or an (abbreviated) sha stands for.

        Raises:
            HubError: 404 `RevisionNotFound`.
        """
        for known in (self.references.get(f"refs/heads/{revision}"), self.references.get(revision)):
            if known is not None:
                return self.commits[known]
        if revision in self.tags:
            return self.commits[self.tags[revision]]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            matches = [sha for sha in self.commits if sha.startswith(revision)]
            if len(matches) == 1:
                return self.commits[matches[0]]
        raise revision_not_found(revision)

    def reference_of(self, revision: str) -> str:
        """The full reference that a commit to `revision` moves.

        Raises:
            HubError: 404 `RevisionNotFound`; commits go to branches and pull requests only.
        """
        reference = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        if reference not in self.references:
            raise revision_not_found(revision)
        return reference

    def pull_request_of(self, revision: str) -> Discussion | None:
        """The pull request behind `refs/pr/N`, if `revision` is one."""
        match = re.fullmatch(r"refs/pr/(\d+)", revision)
        return self.discussions.get(int(match[1])) if match else None

    def commit(
        self, reference: str, tree: Tree, *, title: str, message: str = "", author: str
    ) -> Commit:
        """Add a commit on top of `reference` and move the reference to it."""
        parent = self.references.get(reference)
        number = len(self.commits)
        listing = {path: entry.oid for path, entry in sorted(tree.items())}
        identity = json.dumps([self.id, number, parent, listing, title, message, author])
        sha = hashlib.sha1(identity.encode()).hexdigest()
        self.commits[sha] = Commit(sha, title, message, author, now(), parent, dict(tree))
        self.references[reference] = sha
        pull_request = self.pull_request_of(reference)
        if pull_request is not None:
            pull_request.add_event("commit", author, {"subject": title, "oid": sha})
        return self.commits[sha]

    def history(self, revision: str) -> Iterator[Commit]:
        """The commits behind `revision`, newest first."""
        sha: str | None = self.resolve(revision).sha
        while sha is not None:
            yield self.commits[sha]
            sha = self.commits[sha].parent

    def discuss(self, title: str, description: str, author: str) -> Discussion:
        """Open a discussion."""
        discussion = Discussion(len(self.discussions) + 1, title, author, "open")
        discussion.add_comment(author, description)
        self.discussions[discussion.number] = discussion
        return discussion

    def open_pull_request(
        self, title: str, description: str, author: str, *, base: str = "main", draft: bool
    ) -> Discussion:
        """Open a pull request; its reference starts where the base branch is now."""
        pull_request = self.discuss(title, description, author)
        pull_request.base = base
        pull_request.fork = self.resolve(base).sha
        pull_request.status = "draft" if draft else "open"
        self.references[pull_request.reference] = pull_request.fork
        return pull_request

    def merge(self, pull_request: Discussion, author: str) -> Commit:
        """Commit what the pull request changed onto its base branch.

        Raises:
            HubError: 400 when it is a discussion or is closed already.
        """
        if pull_request.base is None or pull_request.fork is None:
            raise HubError(400, "Only pull requests can be merged")
        if pull_request.status in ("closed", "merged"):
            raise HubError(400, f"The pull request is {pull_request.status}")
        before = self.commits[pull_request.fork].tree
        after = self.resolve(pull_request.reference).tree
        merged = dict(self.resolve(pull_request.base).tree)
        for path in before.keys() | after.keys():
            if path not in after:
                merged.pop(path, None)
            elif after[path] != before.get(path):
                merged[path] = after[path]
        title = f"{pull_request.title} (#{pull_request.number})"
        commit = self.commit(f"refs/heads/{pull_request.base}", merged, title=title, author=author)
        pull_request.merge_commit = commit.sha
        pull_request.status = "merged"
        pull_request.add_event("status-change", author, {"status": "merged"})
        return commit
