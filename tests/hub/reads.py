"""Routes that describe repositories: info, lists, trees, references, history."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .accounts import identify, organisations_of
from .errors import HubError, entry_not_found, repository_not_found
from .metadata import card_data, tags_of
from .repositories import Commit, Entry, Repository, Tree
from .site import Site, may_see, parameter, revision_of

REPOSITORY = "/api/{type:plural}/{namespace}/{name}"
_PAGE_LIMIT = 1000


class ReadRoutes:
    """The routes that answer with JSON about what is there."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def routes(self) -> list[Route]:
        return [
            Route("/api/whoami-v2", self._whoami),
            Route("/api/{type:plural}", self._list_repositories),
            Route("/api/{type:plural}/{name}", self._no_namespace),
            Route(REPOSITORY, self._info),
            Route(REPOSITORY + "/revision/{revision}", self._info),
            Route(REPOSITORY + "/tree/{revision}", self._tree),
            Route(REPOSITORY + "/tree/{revision}/{path:path}", self._tree),
            Route(REPOSITORY + "/paths-info/{revision}", self._paths_info, methods=["POST"]),
            Route(REPOSITORY + "/refs", self._references),
            Route(REPOSITORY + "/commits/{revision}", self._commits),
            Route(REPOSITORY + "/auth-check", self._auth_check),
            Route(REPOSITORY + "/auth-check/write", self._auth_check_write),
        ]

    async def _whoami(self, request: Request) -> Response:
        account = identify(request)
        if account is None:
            raise HubError(401, "Invalid username or password.")
        organisations = [{"type": "org", "name": name} for name in organisations_of(account.user)]
        token = {"displayName": "test", "role": account.role}
        return JSONResponse(
            {
                "type": "user",
                "id": account.user,
                "name": account.user,
                "fullname": account.user.title(),
                "isPro": False,
                "canPay": False,
                "orgs": organisations,
                "auth": {"type": "access_token", "accessToken": token},
            }
        )

    async def _no_namespace(self, request: Request) -> Response:
        raise repository_not_found(anonymous=identify(request) is None)

    async def _info(self, request: Request) -> Response:
        """Gated repositories answer this too: only their files are behind the gate."""
        repository = self._site.visit(request)
        commit = repository.resolve(revision_of(request))
        query = request.query_params
        info = self._describe(repository, commit, with_blobs=query.get("blobs") == "true")
        wanted = query.getlist("expand")
        if wanted:
            info = {key: info[key] for key in ("_id", "id", *wanted) if key in info}
        return JSONResponse(info)

    async def _list_repositories(self, request: Request) -> Response:
        account = identify(request)
        query = request.query_params
        kind = request.path_params["type"]
        found = [
            self._describe(repository, repository.resolve("main"))
            for repository in self._site.store.repositories.values()
            if repository.type == kind and may_see(account, repository)
        ]
        found = [info for info in found if _is_searched(info, query)]
        found.sort(key=lambda info: str(info["lastModified"]), reverse=True)
        start = int(query.get("cursor", 0))
        end = start + min(int(query.get("limit", _PAGE_LIMIT)), _PAGE_LIMIT)
        headers = {}
        if end < len(found):
            rest = [(key, value) for key, value in query.multi_items() if key != "cursor"]
            following = urlencode([*rest, ("cursor", end)])
            url = f"{self._site.endpoint}/api/{kind}s?{following}"
            headers["Link"] = f'<{url}>; rel="next"'
        return JSONResponse(found[start:end], headers=headers)

    async def _tree(self, request: Request) -> Response:
        repository = self._site.visit_content(request)
        commit = repository.resolve(revision_of(request))
        folder = parameter(request, "path").strip("/")
        is_recursive = request.query_params.get("recursive", "").lower() == "true"
        listing = list(_list_tree(commit.tree, folder, is_recursive=is_recursive))
        if folder and not listing:
            raise entry_not_found(folder, commit.sha)
        return JSONResponse(listing)

    async def _paths_info(self, request: Request) -> Response:
        """The entries of some paths; the client sends a form, older ones JSON."""
        repository = self._site.visit_content(request)
        tree = repository.resolve(revision_of(request)).tree
        body = await request.body()
        if "json" in request.headers.get("content-type", ""):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode()).get("paths", [])
        answer = []
        for path in paths:
            if path in tree:
                answer.append(_file_listing(path, tree[path]))
            elif any(known.startswith(f"{path.rstrip('/')}/") for known in tree):
                answer.append(_folder_listing(path))
        return JSONResponse(answer)

    async def _references(self, request: Request) -> Response:
        repository = self._site.visit_content(request)
        branches, pull_requests = [], []
        for name, sha in repository.references.items():
            if name.startswith("refs/heads/"):
                branches.append(_reference(name.removeprefix("refs/heads/"), name, sha))
            else:
                pull_requests.append(_reference(name.removeprefix("refs/"), name, sha))
        tags = [_reference(name, f"refs/tags/{name}", sha) for name, sha in repository.tags.items()]
        answer = {"branches": branches, "converts": [], "tags": tags}
        if request.query_params.get("include_prs"):
            answer["pullRequests"] = pull_requests
        return JSONResponse(answer)

    async def _commits(self, request: Request) -> Response:
        repository = self._site.visit_content(request)
        return JSONResponse(
            [
                {
                    "id": commit.sha,
                    "title": commit.title,
                    "message": commit.message,
                    "authors": [{"user": commit.author}],
                    "date": commit.date,
                }
                for commit in repository.history(revision_of(request))
            ]
        )

    async def _auth_check(self, request: Request) -> Response:
        self._site.visit_content(request)
        return JSONResponse({})

    async def _auth_check_write(self, request: Request) -> Response:
        self._site.visit_to_write(request)
        return JSONResponse({})

    def _describe(
        self, repository: Repository, commit: Commit, *, with_blobs: bool = False
    ) -> dict[str, Any]:
        data = card_data(commit.tree, self._site.objects)
        info: dict[str, Any] = {
            "_id": hashlib.md5(repository.id.encode()).hexdigest()[:24],
            "id": repository.id,
            "modelId": repository.id,
            "author": repository.namespace,
            "sha": commit.sha,
            "private": repository.private,
            "gated": repository.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": tags_of(data),
            "createdAt": repository.created,
            "lastModified": commit.date,
            "cardData": data,
            "siblings": [
                _sibling(path, entry, with_blobs=with_blobs)
                for path, entry in sorted(commit.tree.items())
            ],
        }
        for key in ("library_name", "pipeline_tag", "model-index"):
            if data.get(key):
                info[key] = data[key]
        return info


def _is_searched(info: dict[str, Any], query: QueryParams) -> bool:
    """Whether a repository matches the search words, the author and every filter."""
    return (
        query.get("search", "").lower() in info["id"].lower()
        and query.get("author", info["author"]) == info["author"]
        and query.get("pipeline_tag", info.get("pipeline_tag")) == info.get("pipeline_tag")
        and all(tag in info["tags"] for tag in query.getlist("filter"))
    )


def _sibling(path: str, entry: Entry, *, with_blobs: bool) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": path}
    if with_blobs:
        sibling |= {"size": entry.size, "blobId": entry.blob_oid}
        if entry.sha256 is not None:
            lfs = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
            sibling["lfs"] = lfs
    return sibling


def _list_tree(tree: Tree, folder: str, *, is_recursive: bool) -> Iterator[dict[str, Any]]:
    """The files and folders below `folder`, each folder before what it holds."""
    prefix = f"{folder}/" if folder else ""
    folders: set[str] = set()
    for path, entry in sorted(tree.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        depth = len(parts) if is_recursive else min(len(parts), 2)
        for length in range(1, depth):
            parent = prefix + "/".join(parts[:length])
            if parent not in folders:
                folders.add(parent)
                yield _folder_listing(parent)
        if is_recursive or len(parts) == 1:
            yield _file_listing(path, entry)


def _file_listing(path: str, entry: Entry) -> dict[str, Any]:
    listing: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": entry.size,
        "oid": entry.blob_oid,
    }
    if entry.sha256 is not None:
        lfs = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
        listing["lfs"] = lfs
    if entry.xet_hash is not None:
        listing["xetHash"] = entry.xet_hash
    return listing


def _folder_listing(path: str) -> dict[str, Any]:
    oid = hashlib.sha1(path.encode()).hexdigest()
    return {"type": "directory", "path": path, "oid": oid, "size": 0}


def _reference(name: str, reference: str, sha: str) -> dict[str, str]:
    return {"name": name, "ref": reference, "targetCommit": sha}
