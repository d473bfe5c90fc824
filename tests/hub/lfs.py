"""Git LFS: the batch route, and where objects are sent to, whole or in parts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .errors import HubError
from .site import Site


class LfsRoutes:
    """Uploads used by the client when Xet is off, or for file objects."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._parts: dict[tuple[str, int], Path] = {}

    def routes(self) -> list[Route]:
        batch = "{name}.git/info/lfs/objects/batch"
        return [
            Route("/{namespace}/" + batch, self._batch, methods=["POST"]),
            Route("/{type:plural}/{namespace}/" + batch, self._batch, methods=["POST"]),
            Route("/_lfs/{oid}", self._put, methods=["PUT"]),
            Route("/_lfs/{oid}/parts/{number:int}", self._put_part, methods=["PUT"]),
            Route("/_lfs/{oid}/complete", self._complete, methods=["POST"]),
            Route("/_lfs/{oid}/verify", self._verify, methods=["POST"]),
        ]

    async def _batch(self, request: Request) -> Response:
        """Where to send each object; no actions for those that are here already."""
        self._site.visit_to_contribute(request)
        body = await request.json()
        chunk = self._site.options.multipart_chunk
        can_split = chunk is not None and "multipart" in body.get("transfers", ())
        objects = []
        for wanted in body["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if not self._site.objects.has(oid):
                upload: dict[str, Any] = {"href": f"{self._site.storage}/_lfs/{oid}"}
                if chunk is not None and can_split:
                    upload = self._multipart_upload(oid, size, chunk)
                verify = {"href": f"{self._site.endpoint}/_lfs/{oid}/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        transfer = "multipart" if can_split else "basic"
        return JSONResponse({"transfer": transfer, "objects": objects})

    def _multipart_upload(self, oid: str, size: int, chunk: int) -> dict[str, Any]:
        base = f"{self._site.storage}/_lfs/{oid}"
        count = -(-size // chunk)
        urls = {f"{number:05d}": f"{base}/parts/{number}" for number in range(1, count + 1)}
        return {"href": f"{base}/complete", "header": {"chunk_size": str(chunk), **urls}}

    async def _put(self, request: Request) -> Response:
        part, _ = await self._receive(request)
        self._site.objects.adopt(part, request.path_params["oid"])
        return Response()

    async def _put_part(self, request: Request) -> Response:
        part, etag = await self._receive(request)
        self._parts[request.path_params["oid"], request.path_params["number"]] = part
        return Response(headers={"ETag": f'"{etag}"'})

    async def _complete(self, request: Request) -> Response:
        """Join the parts named in the body."""
        oid = request.path_params["oid"]
        numbers = sorted(part["partNumber"] for part in (await request.json())["parts"])
        if any((oid, number) not in self._parts for number in numbers):
            raise HubError(400, "A part was not uploaded")
        whole = self._site.objects.temporary()
        with whole.open("wb") as file:
            for number in numbers:
                part = self._parts.pop((oid, number))
                file.write(part.read_bytes())
                part.unlink()
        self._site.objects.adopt(whole, oid)
        return JSONResponse({})

    async def _verify(self, request: Request) -> Response:
        body = await request.json()
        objects = self._site.objects
        is_here = objects.has(body["oid"]) and objects.size(body["oid"]) == body["size"]
        return JSONResponse({}, 200 if is_here else 404)

    async def _receive(self, request: Request) -> tuple[Path, str]:
        """Store a body in a temporary file; its path and md5 come back."""
        if "authorization" in request.headers:
            raise HubError(400, "Only one auth mechanism allowed: the URL is signed already")
        part = self._site.objects.temporary()
        digest = hashlib.md5()
        with part.open("wb") as file:
            async for block in request.stream():
                file.write(block)
                digest.update(block)
        return part, digest.hexdigest()
