"""The Xet content-addressed store over HTTP, as hf_xet 1.8 speaks it.

hf_xet tries newer routes first (`/v1/xorb-grants`, `/v2/shards`, `/v2/reconstructions`) and falls
back to these when they are 404. An answer of 200 to a route it only probes makes it believe the
data is stored already, so unknown routes must stay 404.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from .errors import HubError
from .xorb import Segment, chunk_offsets, parse_shard, unpack_chunks

READ_TOKEN = "xet-read"
WRITE_TOKEN = "xet-write"


class ContentStore:
    """Xorbs on disk, and in memory the files that shards made of them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self._folder = folder
        folder.mkdir(parents=True)
        self._offsets: dict[str, list[int]] = {}
        self._files: dict[str, tuple[Segment, ...]] = {}
        self._by_sha256: dict[str, str] = {}

    def xet_hash(self, sha256: str) -> str | None:
        """The Xet hash of an uploaded file; commits name the sha256 only."""
        return self._by_sha256.get(sha256)

    def write_file(self, xet_hash: str, destination: Path) -> None:
        """Put a file together from its chunks."""
        with destination.open("wb") as file:
            for segment in self._files[xet_hash]:
                for content in unpack_chunks(self._packed(segment)):
                    file.write(content)

    def routes(self) -> list[Route]:
        return [
            Route("/v1/xorbs/{prefix}/{xorb}", self._post_xorb, methods=["POST"]),
            Route("/v1/shards", self._post_shard, methods=["POST"]),
            Route("/v1/reconstructions/{file}", self._get_reconstruction),
            Route("/xorb-data/{xorb}", self._get_xorb_data),
        ]

    def _path(self, xorb: str) -> Path:
        return self._folder / xorb

    def _packed(self, segment: Segment) -> bytes:
        """The chunks of a segment as they were uploaded."""
        offsets = self._offsets[segment.xorb]
        first, end = offsets[segment.start], offsets[segment.end]
        with self._path(segment.xorb).open("rb") as xorb:
            xorb.seek(first)
            return xorb.read(end - first)

    async def _post_xorb(self, request: Request) -> Response:
        _require_token(request, WRITE_TOKEN)
        xorb = request.path_params["xorb"]
        is_new = xorb not in self._offsets
        if is_new:
            content = await request.body()
            self._path(xorb).write_bytes(content)
            self._offsets[xorb] = chunk_offsets(content)
        return JSONResponse({"was_inserted": is_new})

    async def _post_shard(self, request: Request) -> Response:
        """Take in a shard, all or nothing: every chunk it names must be here."""
        _require_token(request, WRITE_TOKEN)
        files = list(parse_shard(await request.body()))
        for segment in (segment for file in files for segment in file.segments):
            if segment.end >= len(self._offsets.get(segment.xorb, ())):
                raise HubError(400, f"The shard names unknown chunks of the xorb {segment.xorb}")
        for file in files:
            self._files[file.xet_hash] = file.segments
            if file.sha256 is not None:
                self._by_sha256[file.sha256] = file.xet_hash
        return JSONResponse({"result": 1})

    async def _get_reconstruction(self, request: Request) -> Response:
        """Which byte ranges of which xorbs to fetch for a file, or for a range of it."""
        _require_token(request, READ_TOKEN, WRITE_TOKEN)
        segments = self._files.get(request.path_params["file"])
        if segments is None:
            return Response(status_code=404)
        size = sum(segment.length for segment in segments)
        first, last = 0, size - 1
        wanted = re.match(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if wanted:
            first = int(wanted[1])
            last = min(int(wanted[2]), last) if wanted[2] else last
            if first >= size:
                return Response(status_code=416)

        terms: list[dict[str, Any]] = []
        fetches: dict[str, list[dict[str, Any]]] = {}
        offset_into_first_term = 0
        position = 0
        for segment in segments:
            if position <= last and position + segment.length > first:
                if not terms:
                    offset_into_first_term = first - position
                terms.append(_term(segment))
                fetch = self._fetch(segment)
                known = fetches.setdefault(segment.xorb, [])
                if fetch not in known:
                    known.append(fetch)
            position += segment.length
        return JSONResponse(
            {
                "offset_into_first_range": offset_into_first_term,
                "terms": terms,
                "fetch_info": fetches,
            }
        )

    def _fetch(self, segment: Segment) -> dict[str, Any]:
        offsets = self._offsets[segment.xorb]
        return {
            "range": {"start": segment.start, "end": segment.end},
            "url": f"{self.url}/xorb-data/{segment.xorb}",
            "url_range": {"start": offsets[segment.start], "end": offsets[segment.end] - 1},
        }

    async def _get_xorb_data(self, request: Request) -> Response:
        """The bytes behind the URLs handed out above (presigned on the real Hub: no token)."""
        xorb = request.path_params["xorb"]
        if xorb not in self._offsets:
            return Response(status_code=404)
        return FileResponse(self._path(xorb))


def _term(segment: Segment) -> dict[str, Any]:
    return {
        "hash": segment.xorb,
        "unpacked_length": segment.length,
        "range": {"start": segment.start, "end": segment.end},
    }


def _require_token(request: Request, *accepted: str) -> None:
    """The store takes the tokens of `xet-read-token` and `xet-write-token`, not the user's."""
    if request.headers.get("authorization", "").removeprefix("Bearer ") not in accepted:
        raise HubError(401, "This needs a Xet token")
