"""Bounds of what a visitor may send: no uploads, as no component takes files, and small bodies in little time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_BODY = 256 * 2**10  # bytes; the longest prompts and all settings take a few kilobytes
BODY_SECONDS = 30.0
CLOSED = re.compile(
    r"/(upload|process_recording|component_server|run-history|vibe-[a-z-]+|stream)(/|$)", re.IGNORECASE
)
BODILESS = {"GET", "HEAD", "OPTIONS"}


class Bounded:
    """An ASGI application with the bodies of its requests read, and bounded, before it sees them.

    Routes that take files are closed (404). A body of more than `most` bytes is refused (413) as soon as that is
    known, announced or not; one that takes longer than `seconds` too (408). Requests to `own` paths are handed on
    as they are: they look after themselves.
    """

    def __init__(
        self, app: App, *, most: int = MAX_BODY, seconds: float = BODY_SECONDS, own: Collection[str] = ()
    ) -> None:
        self.app = app
        self.most = most
        self.seconds = seconds
        self.own = frozenset(own)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or scope["path"] in self.own:
            await self.app(scope, receive, send)
            return
        if scope["method"] not in BODILESS and CLOSED.search(scope["path"]):
            await _refuse(send, 404, "there is no such place")
            return
        try:
            body = await asyncio.wait_for(self._body(scope, receive), self.seconds)
        except ValueError:
            await _refuse(send, 413, f"more than {self.most} bytes are not taken")
            return
        except asyncio.TimeoutError:
            await _refuse(send, 408, "that took too long")
            return
        if body is None:
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """All of the body; None where the visitor left. Raises ValueError where it is too large."""
        announced = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
        if any(not value.isdigit() or len(value) > 18 or int(value) > self.most for value in announced):
            raise ValueError
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.most:
                raise ValueError
            if not message.get("more_body", False):
                return bytes(body)


async def _refuse(send: Send, status: int, word: str) -> None:
    """Answer without having read what was sent; the connection ends with it."""
    raw = word.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(raw)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})
