"""The ASGI application: routes, the guard in front of them, and errors as answers."""

from __future__ import annotations

import errno
import logging
import re
import sqlite3

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdhub.hub.api import (
    accounts,
    collections,
    commits,
    discussions,
    files,
    jobs,
    repositories,
    spaces,
    uploads,
    xet,
)
from sdhub.hub.api.call import refused
from sdhub.hub.errors import Refusal
from sdhub.hub.hub import EmbeddedHub
from sdhub.hub.pages import handlers, view

logger = logging.getLogger("sdhub.hub")

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
# Names without a namespace, as huggingface.co has a few: here there are none.
_NO_NAMESPACE = re.compile(
    r"/api/(?:models|datasets|spaces)/[^/]+(?:/revision/[^/]+)?|(?:/(?:datasets|spaces))?/[^/]+/resolve/.+"
)
_MACHINE_PATHS = ("/api/", "/xet/")


def make_app(hub: EmbeddedHub) -> ASGIApp:
    """The application that serves a Hub."""
    app = Starlette(
        routes=[
            *accounts.ROUTES,
            *collections.ROUTES,
            *repositories.ROUTES,
            *spaces.ROUTES,
            *jobs.ROUTES,
            *commits.ROUTES,
            *discussions.ROUTES,
            *uploads.ROUTES,
            *xet.ROUTES,
            *files.ROUTES,
            *handlers.ROUTES,
        ],
        exception_handlers={
            Refusal: _on_refusal,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
            UnicodeEncodeError: _on_unfit_value,
            OverflowError: _on_unfit_value,
            OSError: _on_system_error,
            sqlite3.OperationalError: _on_system_error,
            Exception: _on_error,
        },
    )
    app.state.hub = hub
    return Guard(app, hub)


class Guard:
    """In front of all routes.

    On a loopback bind, a request must name this machine as its host: a page elsewhere whose name was made to
    point here (DNS rebinding) names another. Routes match the path as it was sent, still percent-encoded, so
    that `refs%2Fpr%2F1` is one segment.
    """

    def __init__(self, app: ASGIApp, hub: EmbeddedHub) -> None:
        self._app = app
        self._hub = hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._hub.loopback and not _names_this_machine(scope):
            answer = refused(Refusal(421, "This Hub is for this machine only: use localhost or 127.0.0.1"))
            await answer(scope, receive, send)
            return
        raw = scope.get("raw_path") or scope["path"].encode()
        scope = {**scope, "path": raw.decode("latin-1")}
        await self._app(scope, receive, _with_nosniff(send))


def _names_this_machine(scope: Scope) -> bool:
    hosts = [value.decode("latin-1").lower() for key, value in scope["headers"] if key == b"host"]
    if len(hosts) != 1:
        return False
    name, colon, port = hosts[0].rpartition(":")
    if not colon or not port.isdigit():
        name = hosts[0]
    return name in _LOOPBACK_NAMES


def _with_nosniff(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {key.lower() for key, _ in message["headers"]}
            if b"x-content-type-options" not in names:
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
        await send(message)

    return wrapped


def _wants_page(request: Request) -> bool:
    machine = request.url.path.startswith(_MACHINE_PATHS)
    return request.method == "GET" and not machine and "text/html" in request.headers.get("accept", "")


async def _on_refusal(request: Request, error: Exception) -> Response:
    refusal = error if isinstance(error, Refusal) else Refusal(500, "Internal error")
    answer = refused(refusal)
    if not _wants_page(request):
        return answer
    status = 404 if refusal.code == "RepoNotFound" else refusal.status
    message = "This page or repository is not here, or not for you." if status == 404 else refusal.message
    shown = view.page("error.html", http_status=status, status=status, message=message)
    for key in ("X-Error-Code", "X-Error-Message"):
        if key in answer.headers:
            shown.headers[key] = answer.headers[key]
    return shown


async def _on_http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404 and _NO_NAMESPACE.fullmatch(request.url.path):
        return await _on_refusal(request, Refusal(404, "Repository not found", code="RepoNotFound"))
    return await _on_refusal(request, Refusal(status, "Not found" if status == 404 else "Not allowed"))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return refused(Refusal(400, "The request ended early"))


async def _on_unfit_value(request: Request, error: Exception) -> Response:
    """Half a surrogate pair, or a number that no database holds."""
    return await _on_refusal(request, Refusal(400, "The request has a text or number that cannot be kept"))


async def _on_system_error(request: Request, error: Exception) -> Response:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return refused(Refusal(507, "The disk of this Hub is full"))
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return refused(Refusal(503, "The Hub is busy, try again"))
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return refused(Refusal(500, "Internal error"))


async def _on_error(_request: Request, _error: Exception) -> Response:
    """A mistake of ours; the server logs it."""
    return refused(Refusal(500, "Internal error"))
