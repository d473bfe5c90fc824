"""Routes that serve file content: `resolve`, the second origin, and tokens to read over Xet."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .accounts import identify
from .cas import READ_TOKEN, WRITE_TOKEN
from .errors import HubError, entry_not_found, repository_not_found
from .reads import REPOSITORY
from .site import Site, parameter, revision_of

_BLOCK = 1 << 16
_BYTES = "application/octet-stream"
_TOKEN_LIFE = 3600


class ContentRoutes:
    """The routes that bytes come from."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def routes(self) -> list[Route]:
        file = "/resolve/{revision}/{path:path}"
        return [
            Route("/{name}" + file, self._no_namespace),
            Route("/{namespace}/{name}" + file, self._resolve),
            Route("/{type:plural}/{namespace}/{name}" + file, self._resolve),
            Route("/_cdn/{oid}", self._cdn),
            Route(REPOSITORY + "/xet-read-token/{revision}", self._xet_read_token),
            Route(REPOSITORY + "/xet-write-token/{revision}", self._xet_write_token),
        ]

    async def _no_namespace(self, request: Request) -> Response:
        raise repository_not_found(anonymous=identify(request) is None)

    async def _resolve(self, request: Request) -> Response:
        """A file, its headers, or (LFS, with the second origin on) a redirect to it."""
        repository = self._site.visit_content(request)
        commit = repository.resolve(revision_of(request))
        path = parameter(request, "path")
        entry = commit.tree.get(path)
        if entry is None:
            raise entry_not_found(path, commit.sha)
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{entry.oid}"'}
        if entry.sha256 is not None:
            headers["X-Linked-Etag"] = f'"{entry.sha256}"'
            headers["X-Linked-Size"] = str(entry.size)
        if entry.xet_hash is not None:
            api = f"{self._site.endpoint}/api/{repository.type}s/{repository.id}"
            headers["X-Xet-Hash"] = entry.xet_hash
            headers["Link"] = f'<{api}/xet-read-token/{commit.sha}>; rel="xet-auth"'
        if entry.sha256 is not None and self._site.options.redirect_to_cdn:
            headers["Location"] = f"{self._site.cdn}/_cdn/{entry.sha256}"
            return Response(status_code=302, headers=headers)
        ranged = not self._site.options.ignore_ranges
        return serve_file(request, self._site.objects.path(entry.oid), headers, ranged=ranged)

    async def _cdn(self, request: Request) -> Response:
        """An LFS object at the second origin, where a user's token has no business."""
        if "authorization" in request.headers:
            raise HubError(400, "Only one auth mechanism allowed: the URL is signed already")
        oid = request.path_params["oid"]
        if not self._site.objects.has(oid):
            return Response(status_code=404)
        return serve_file(request, self._site.objects.path(oid), {"ETag": f'"{oid}"'})

    async def _xet_read_token(self, request: Request) -> Response:
        repository = self._site.visit_content(request)
        repository.resolve(revision_of(request))
        return self._xet_token(READ_TOKEN)

    async def _xet_write_token(self, request: Request) -> Response:
        """With `create_pr=1` the reference is not known yet, and the revision may be `None`."""
        if request.query_params.get("create_pr"):
            self._site.visit_to_contribute(request)
        else:
            self._site.visit_to_write(request, revision_of(request))
        return self._xet_token(WRITE_TOKEN)

    def _xet_token(self, token: str) -> Response:
        """The token twice: hf_xet reads the JSON, the Python client the headers."""
        url = self._site.contents.url
        expiry = int(time.time()) + _TOKEN_LIFE
        headers = {
            "X-Xet-Cas-Url": url,
            "X-Xet-Access-Token": token,
            "X-Xet-Token-Expiration": str(expiry),
        }
        return JSONResponse({"casUrl": url, "accessToken": token, "exp": expiry}, headers=headers)


def serve_file(
    request: Request, path: Path, headers: dict[str, str], *, ranged: bool = True
) -> Response:
    """A file, or the range of it that is asked for."""
    size = path.stat().st_size
    headers = {**headers, "Accept-Ranges": "bytes"}
    status, first, last = 200, 0, size - 1
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if ranged and wanted and wanted[0] != "bytes=-" and request.method == "GET":
        first, last = _parse_range(wanted[1], wanted[2], size)
        if first >= size:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
        status = 206
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    headers["Content-Length"] = str(last - first + 1)
    if request.method == "HEAD":
        return Response(None, status, headers, _BYTES)
    return StreamingResponse(_read_blocks(path, first, last), status, headers, _BYTES)


def _parse_range(first: str, last: str, size: int) -> tuple[int, int]:
    """The first and last byte of `first-last`, `first-` or `-length`."""
    if not first:
        return max(size - int(last), 0), size - 1
    return int(first), min(int(last), size - 1) if last else size - 1


async def _read_blocks(path: Path, first: int, last: int) -> AsyncIterator[bytes]:
    left = last - first + 1
    with path.open("rb") as file:
        file.seek(first)
        while left > 0 and (block := file.read(min(_BLOCK, left))):
            left -= len(block)
            yield block
