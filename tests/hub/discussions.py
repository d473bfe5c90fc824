"""Routes of discussions and pull requests."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .errors import HubError, forbidden
from .reads import REPOSITORY
from .repositories import Discussion, Repository
from .site import Site


class DiscussionRoutes:
    """The community tab as an API."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def routes(self) -> list[Route]:
        one = REPOSITORY + "/discussions/{number:int}"
        return [
            Route(REPOSITORY + "/discussions", self._list, methods=["GET"]),
            Route(REPOSITORY + "/discussions", self._open, methods=["POST"]),
            Route(one, self._details),
            Route(one + "/comment", self._comment, methods=["POST"]),
            Route(one + "/status", self._change_status, methods=["POST"]),
            Route(one + "/title", self._change_title, methods=["POST"]),
            Route(one + "/merge", self._merge, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        repository = self._site.visit(request)
        query = request.query_params
        found = [
            _listing(repository, discussion)
            for discussion in reversed(repository.discussions.values())
            if query.get("type", "all") in ("all", _kind(discussion))
            and query.get("status", "all") in ("all", _open_or_closed(discussion))
            and query.get("author", discussion.author) == discussion.author
        ]
        return JSONResponse({"discussions": found, "count": len(found), "start": 0})

    async def _open(self, request: Request) -> Response:
        """A pull request opened here is a draft, to be pushed to next."""
        repository, account = self._site.visit_to_contribute(request)
        body = await request.json()
        title, description = body["title"], body.get("description", "")
        if body.get("pullRequest"):
            opened = repository.open_pull_request(title, description, account.user, draft=True)
        else:
            opened = repository.discuss(title, description, account.user)
        return JSONResponse(_details(repository, opened))

    async def _details(self, request: Request) -> Response:
        repository = self._site.visit(request)
        return JSONResponse(_details(repository, _find(repository, request)))

    async def _comment(self, request: Request) -> Response:
        repository, account = self._site.visit_to_contribute(request)
        text = (await request.json())["comment"]
        event = _find(repository, request).add_comment(account.user, text)
        return JSONResponse({"newMessage": event})

    async def _change_status(self, request: Request) -> Response:
        discussion, user = self._visit_to_manage(request)
        body = await request.json()
        discussion.status = body["status"]
        event = discussion.add_event("status-change", user, {"status": body["status"]})
        if body.get("comment"):
            discussion.add_comment(user, body["comment"])
        return JSONResponse({"newStatus": event})

    async def _change_title(self, request: Request) -> Response:
        discussion, user = self._visit_to_manage(request)
        title = (await request.json())["title"]
        event = discussion.add_event("title-change", user, {"from": discussion.title, "to": title})
        discussion.title = title
        return JSONResponse({"newTitle": event})

    async def _merge(self, request: Request) -> Response:
        repository, account = self._site.visit_to_write(request)
        discussion = _find(repository, request)
        comment = json.loads(await request.body() or b"null") or {}
        repository.merge(discussion, account.user)
        if comment.get("comment"):
            discussion.add_comment(account.user, comment["comment"])
        return JSONResponse({})

    def _visit_to_manage(self, request: Request) -> tuple[Discussion, str]:
        """A discussion and a user who is its author or an owner of the repository."""
        repository, account = self._site.visit_to_contribute(request)
        discussion = _find(repository, request)
        if account.user != discussion.author and not account.owns(repository.namespace):
            raise forbidden("this discussion is somebody else's")
        return discussion, account.user


def _find(repository: Repository, request: Request) -> Discussion:
    discussion = repository.discussions.get(request.path_params["number"])
    if discussion is None:
        raise HubError(404, "This discussion does not exist")
    return discussion


def _kind(discussion: Discussion) -> str:
    return "pull_request" if discussion.is_pull_request else "discussion"


def _open_or_closed(discussion: Discussion) -> str:
    return "open" if discussion.status in ("open", "draft") else "closed"


def _listing(repository: Repository, discussion: Discussion) -> dict[str, Any]:
    return {
        "num": discussion.number,
        "title": discussion.title,
        "author": {"name": discussion.author},
        "createdAt": discussion.created,
        "status": discussion.status,
        "isPullRequest": discussion.is_pull_request,
        "repo": {"name": repository.id, "type": repository.type},
    }


def _details(repository: Repository, discussion: Discussion) -> dict[str, Any]:
    details = {**_listing(repository, discussion), "events": discussion.events}
    if discussion.is_pull_request:
        details["changes"] = {
            "base": f"refs/heads/{discussion.base}",
            "mergeCommitId": discussion.merge_commit,
        }
        details["filesWithConflicts"] = []
        details["diff"] = ""
    return details
