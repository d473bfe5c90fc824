"""Routes that create, rename, delete and set up repositories, and the check of a card."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .accounts import Account
from .errors import HubError, forbidden, repository_not_found
from .metadata import card_problems
from .reads import REPOSITORY
from .repositories import Repository
from .site import Site, may_see, require_writer


class ManagementRoutes:
    """The routes about repositories as a whole."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def routes(self) -> list[Route]:
        return [
            Route("/api/repos/create", self._create, methods=["POST"]),
            Route("/api/repos/delete", self._delete, methods=["DELETE"]),
            Route("/api/repos/move", self._move, methods=["POST"]),
            Route("/api/validate-yaml", self._validate_card, methods=["POST"]),
            Route(REPOSITORY + "/settings", self._change_settings, methods=["PUT"]),
            Route(REPOSITORY + "/user-access-request/grant", self._grant, methods=["POST"]),
        ]

    async def _create(self, request: Request) -> Response:
        """A repository that exists already is a 409 which also carries its URL."""
        account = require_writer(request)
        body = await request.json()
        kind, repository_id = _key(body, account)
        _require_ownership(account, repository_id)
        existing = self._site.store.repositories.get((kind, repository_id))
        if existing is not None:
            url = f"{self._site.endpoint}/{existing.url_path}"
            error = f"You already created this {kind} repo"
            return JSONResponse({"error": error, "url": url}, 409)
        # Clients of 2.x send `visibility`, older ones `private`.
        private = body.get("visibility") == "private" or bool(body.get("private"))
        created = self._site.store.create(kind, repository_id, account.user, private=private)
        url = f"{self._site.endpoint}/{created.url_path}"
        return JSONResponse({"url": url, "name": repository_id, "id": repository_id})

    async def _delete(self, request: Request) -> Response:
        account = require_writer(request)
        kind, repository_id = _key(await request.json(), account)
        self._site.store.delete(self._find(account, kind, repository_id))
        return JSONResponse({})

    async def _move(self, request: Request) -> Response:
        account = require_writer(request)
        body = await request.json()
        repository = self._find(account, body.get("type") or "model", body["fromRepo"])
        _require_ownership(account, body["toRepo"])
        self._site.store.move(repository, body["toRepo"])
        return JSONResponse({})

    async def _validate_card(self, request: Request) -> Response:
        errors, warnings = card_problems((await request.json())["content"])
        answer = {
            "errors": [{"message": message} for message in errors],
            "warnings": [{"message": message} for message in warnings],
        }
        return JSONResponse(answer, 400 if errors else 200)

    async def _change_settings(self, request: Request) -> Response:
        repository, _ = self._site.visit_to_write(request)
        settings = await request.json()
        if "gated" in settings:
            repository.gated = settings["gated"]
        if "visibility" in settings:
            repository.private = settings["visibility"] == "private"
        if "private" in settings:
            repository.private = settings["private"]
        return JSONResponse(settings)

    async def _grant(self, request: Request) -> Response:
        repository, _ = self._site.visit_to_write(request)
        repository.granted.add((await request.json())["user"])
        return JSONResponse({})

    def _find(self, account: Account, kind: Any, repository_id: str) -> Repository:
        """A repository the user owns, named in the body of a request."""
        repository = self._site.store.repositories.get((kind, repository_id))
        if repository is None or not may_see(account, repository):
            raise repository_not_found(anonymous=False)
        _require_ownership(account, repository_id)
        return repository


def _key(body: dict[str, Any], account: Account) -> tuple[Any, str]:
    """Type and id of the repository a body names; without an organisation it is the user's."""
    namespace = body.get("organization") or account.user
    return body.get("type") or "model", f"{namespace}/{body['name']}"


def _require_ownership(account: Account, repository_id: str) -> None:
    namespace, _, name = repository_id.partition("/")
    if not name:
        raise HubError(400, f"{repository_id!r} has no namespace")
    if not account.owns(namespace):
        raise forbidden(f'no rights to a repository under the namespace "{namespace}"')
