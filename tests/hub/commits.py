"""Routes that change content: preupload, commit, branches, tags, copies."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .accounts import Account
from .errors import HubError, forbidden, repository_not_found, revision_not_found
from .reads import REPOSITORY
from .repositories import Entry, Repository, Tree
from .site import Site, revision_of
from .store import LFS_THRESHOLD, belongs_in_lfs


@dataclass(frozen=True)
class Changes:
    """A commit as sent: `files` maps a path to its new entry, or to None when it is deleted."""

    title: str
    message: str
    parent: str | None
    files: dict[str, Entry | None]
    deleted_folders: list[str]


class CommitRoutes:
    """The routes that make commits and move references."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def routes(self) -> list[Route]:
        change = ["POST", "DELETE"]
        return [
            Route(REPOSITORY + "/preupload/{revision}", self._preupload, methods=["POST"]),
            Route(REPOSITORY + "/commit/{revision}", self._commit, methods=["POST"]),
            Route(REPOSITORY + "/branch/{revision}", self._branch, methods=change),
            Route(REPOSITORY + "/tag/{revision}", self._tag, methods=change),
            Route(REPOSITORY + "/lfs-files/duplicate", self._duplicate, methods=["POST"]),
        ]

    def _visit_to_commit(self, request: Request) -> tuple[Repository, Account]:
        """Opening a pull request takes a write token; pushing takes write access, too."""
        if request.query_params.get("create_pr"):
            return self._site.visit_to_contribute(request)
        return self._site.visit_to_write(request, revision_of(request))

    async def _preupload(self, request: Request) -> Response:
        """How each file is to be sent, and the oid of what is there, so the client can skip it."""
        repository, _ = self._visit_to_commit(request)
        tree = repository.resolve(revision_of(request)).tree
        answers = []
        for file in (await request.json())["files"]:
            sample = base64.b64decode(file["sample"])
            is_large = belongs_in_lfs(file["path"], file["size"], sample)
            answer = {
                "path": file["path"],
                "uploadMode": "lfs" if is_large else "regular",
                "shouldIgnore": False,
            }
            if file["path"] in tree:
                answer["oid"] = tree[file["path"]].oid
            answers.append(answer)
        return JSONResponse({"files": answers})

    async def _commit(self, request: Request) -> Response:
        repository, account = self._visit_to_commit(request)
        revision = revision_of(request)
        repository.reference_of(revision)
        lines = (await request.body()).splitlines()
        changes = await self._read_changes([json.loads(line) for line in lines if line.strip()])

        # Nothing is awaited from here on, so no other commit can come in between.
        reference = repository.reference_of(revision)
        head = repository.commits[repository.references[reference]]
        if changes.parent is not None and not head.sha.startswith(changes.parent):
            message = "A commit has happened since. Please refresh and try again."
            raise HubError(self._site.options.stale_parent_status, message)
        tree = _apply(changes, head.tree)
        answer = {}
        if request.query_params.get("create_pr"):
            pull_request = repository.open_pull_request(
                changes.title, changes.message, account.user, base=revision, draft=False
            )
            reference = pull_request.reference
            url = f"{self._site.endpoint}/{repository.url_path}/discussions/{pull_request.number}"
            answer["pullRequestUrl"] = url
        commit = repository.commit(
            reference, tree, title=changes.title, message=changes.message, author=account.user
        )
        answer["commitOid"] = commit.sha
        answer["commitUrl"] = f"{self._site.endpoint}/{repository.url_path}/commit/{commit.sha}"
        return JSONResponse({"success": True, "hookOutput": "", **answer})

    async def _read_changes(self, lines: list[dict[str, Any]]) -> Changes:
        """Understand the lines of a commit, the first of which is its header."""
        header = lines[0]["value"]
        files: dict[str, Entry | None] = {}
        deleted_folders: list[str] = []
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            path = value["path"]
            if kind == "file":
                files[path] = self._regular_entry(path, base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                files[path] = await self._large_entry(value["oid"])
            elif kind == "deletedFile":
                files[path] = None
            elif kind == "deletedFolder":
                deleted_folders.append(path.rstrip("/") + "/")
            else:
                raise HubError(400, f"Unknown operation {kind!r} in a commit")
        parent = header.get("parentCommit")
        description = header.get("description", "")
        return Changes(header["summary"], description, parent, files, deleted_folders)

    def _regular_entry(self, path: str, content: bytes) -> Entry:
        if len(content) > LFS_THRESHOLD:
            raise HubError(400, f"{path} is too large for git, it has to go through LFS or Xet")
        return self._site.store.regular_entry(content)

    async def _large_entry(self, sha256: str) -> Entry:
        """The entry of an object sent before: over LFS, or over Xet, then unpacked here once."""
        objects, contents = self._site.objects, self._site.contents
        xet_hash = contents.xet_hash(sha256)
        if not objects.has(sha256):
            if xet_hash is None:
                raise HubError(400, f"The LFS object {sha256} was not uploaded")
            part = objects.temporary()
            await run_in_threadpool(contents.write_file, xet_hash, part)
            await run_in_threadpool(objects.adopt, part, sha256)
        return self._site.store.lfs_entry(sha256, xet_hash)

    async def _branch(self, request: Request) -> Response:
        repository, _ = self._site.visit_to_write(request)
        reference = f"refs/heads/{revision_of(request)}"
        if request.method == "DELETE":
            if reference == "refs/heads/main":
                raise forbidden("the branch main cannot be deleted")
            if repository.references.pop(reference, None) is None:
                raise revision_not_found(revision_of(request))
            return JSONResponse({})
        if reference in repository.references:
            raise HubError(409, f"Reference already exists: {reference}")
        start = json.loads(await request.body() or b"{}").get("startingPoint", "main")
        repository.references[reference] = repository.resolve(start).sha
        return JSONResponse({})

    async def _tag(self, request: Request) -> Response:
        """`POST` names the revision in the path and the tag in the body, `DELETE` the tag."""
        repository, _ = self._site.visit_to_write(request)
        if request.method == "DELETE":
            if repository.tags.pop(revision_of(request), None) is None:
                raise revision_not_found(revision_of(request))
            return JSONResponse({})
        tag = (await request.json())["tag"]
        if tag in repository.tags:
            raise HubError(409, f"Tag {tag} already exists")
        repository.tags[tag] = repository.resolve(revision_of(request)).sha
        return JSONResponse({})

    async def _duplicate(self, request: Request) -> Response:
        """Let another repository use LFS objects of this one (objects are shared here anyway)."""
        _, account = self._site.visit_to_contribute(request)
        body = await request.json()
        target = self._site.store.get(body["target"]["type"], body["target"]["name"])
        if target is None:
            raise repository_not_found(anonymous=False)
        if not account.owns(target.namespace):
            raise forbidden(f"no write access to {target.id}")
        wanted = [file["sha256"] for file in body["files"]]
        found = [sha256 for sha256 in wanted if self._site.objects.has(sha256)]
        failed = [sha256 for sha256 in wanted if sha256 not in found]
        return JSONResponse({"success": found, "failed": failed})


def _apply(changes: Changes, tree: Tree) -> dict[str, Entry]:
    """The tree after the changes.

    Raises:
        HubError: 404 when a file to delete is not there.
    """
    result = {
        path: entry
        for path, entry in tree.items()
        if not path.startswith(tuple(changes.deleted_folders))
    }
    for path, entry in changes.files.items():
        if entry is not None:
            result[path] = entry
        elif path in tree:
            result.pop(path, None)
        else:
            raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
    return result
