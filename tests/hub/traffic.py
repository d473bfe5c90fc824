"""What goes over the wire: a log of every request, and faults put in its way.

`Traffic` wraps the application as ASGI middleware, outside of Starlette, so that a fault can also
cut a connection in the middle of a body.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Origin = Literal["hub", "cdn"]


@dataclass
class RequestRecord:
    """One request as it came in, and what was answered so far.

    `path` is as sent, so a slash in a revision is `%2F`. `authorized` says whether a user's (or
    Xet) token was sent; `sent` counts the bytes of the body.
    """

    method: str
    path: str
    query: str
    range: str | None
    authorized: bool
    origin: Origin
    user_agent: str
    status: int = 0
    sent: int = 0

    @property
    def line(self) -> str:
        """`METHOD /path?query`, what the patterns of faults and filters are searched in."""
        return f"{self.method} {self.path}" + (f"?{self.query}" if self.query else "")


@dataclass
class Fault:
    """Something to go wrong for the next `times` requests that match (None: all of them).

    In this order: wait `delay` seconds, answer `status` instead of the application, or else let
    the application answer and cut the connection after `cut_after` bytes of its body.
    """

    pattern: str
    times: int | None = 1
    delay: float = 0.0
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    hits: int = 0

    def catches(self, line: str) -> bool:
        """Whether the fault applies to a request now."""
        is_live = self.times is None or self.hits < self.times
        return is_live and re.search(self.pattern, line) is not None


class Traffic:
    """Middleware that records requests, applies faults and passes raw paths on."""

    def __init__(self, application: ASGIApp) -> None:
        self.requests: list[RequestRecord] = []
        self.faults: list[Fault] = []
        self.cdn_port: int | None = None
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        record = self._record(scope)
        fault = next((fault for fault in self.faults if fault.catches(record.line)), None)
        answer = _Answer(record, send)
        application = self._application
        if fault is not None:
            fault.hits += 1
            await asyncio.sleep(fault.delay)
            answer.cut_after = fault.cut_after
            if fault.status is not None:
                body = {"error": "a fault of the test Hub"}
                application = JSONResponse(body, fault.status, dict(fault.headers))
        # Route on the raw path: a revision such as refs%2Fpr%2F1 has to stay one segment.
        await application({**scope, "path": record.path}, receive, answer)

    def _record(self, scope: Scope) -> RequestRecord:
        headers = Headers(scope=scope)
        port = scope["server"][1]
        record = RequestRecord(
            method=scope["method"],
            path=scope["raw_path"].decode("ascii"),
            query=scope["query_string"].decode("ascii"),
            range=headers.get("range"),
            authorized="authorization" in headers,
            origin="cdn" if port == self.cdn_port else "hub",
            user_agent=headers.get("user-agent", ""),
        )
        self.requests.append(record)
        return record


class _Answer:
    """The `send` of one request: counts, and goes silent when the connection is to be cut.

    The server closes a connection whose answer was never completed.
    """

    def __init__(self, record: RequestRecord, send: Send) -> None:
        self._record = record
        self._send = send
        self.cut_after: int | None = None
        self._is_cut = False

    async def __call__(self, message: Message) -> None:
        if self._is_cut:
            return
        if message["type"] == "http.response.start":
            self._record.status = message["status"]
        elif message["type"] == "http.response.body":
            message = self._cut(message)
            if self._record.method != "HEAD":
                self._record.sent += len(message.get("body", b""))
        await self._send(message)

    def _cut(self, message: Message) -> Message:
        body: bytes = message.get("body", b"")
        if self.cut_after is None or self._record.sent + len(body) <= self.cut_after:
            return message
        self._is_cut = True
        body = body[: self.cut_after - self._record.sent]
        return {"type": "http.response.body", "body": body, "more_body": True}
