"""One API request: who calls, with what; and how handlers become routes.

Handlers are plain functions from a `Call` to a response. They run in a worker thread and may touch the disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from sdhub.hub.errors import Refusal, bad_request
from sdhub.hub.hub import EmbeddedHub
from sdhub.hub.store import revisions
from sdhub.hub.store.repositories import Repo
from sdhub.hub.store.revisions import Revision
from sdhub.hub.store.trees import Tree, load_tree
from sdhub.hub.users import Caller

MAX_BODY = 10 * 2**20
TYPE_PATHS = {"models": "model", "datasets": "dataset", "spaces": "space"}

_HOST = re.compile(r"[A-Za-z0-9.\-]+(?::\d{1,5})?|\[[0-9A-Fa-f:.]+\](?::\d{1,5})?")


@dataclass
class Call:
    """A request with its decoded path parameters and its JSON (or form) body."""

    request: Request
    params: dict[str, str]
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def hub(self) -> EmbeddedHub:
        """The Hub that is asked."""
        hub: EmbeddedHub = self.request.app.state.hub
        return hub

    @cached_property
    def caller(self) -> Caller:
        """Who asks. 401 for a token that nobody has."""
        return self.hub.users.identify(self.request.headers.get("authorization"))

    @property
    def base(self) -> str:
        """Scheme and host as the client named them, as in `http://127.0.0.1:8420`."""
        host = self.request.headers.get("host", "")
        if not _HOST.fullmatch(host):
            raise bad_request("Invalid Host header")
        return f"{self.request.url.scheme}://{host}"

    def query(self, name: str, default: str = "") -> str:
        """A query parameter."""
        return self.request.query_params.get(name, default)

    def flag(self, name: str) -> bool:
        """A query parameter that is a truth value."""
        return self.query(name).lower() in {"1", "true", "on", "yes"}

    def number(self, name: str, default: int, largest: int) -> int:
        """A query parameter that is a count from 0; capped at `largest`. 400 otherwise."""
        text = self.query(name, str(default))
        if not text.isascii() or not text.isdigit() or len(text) > 12:
            raise bad_request(f"{name} is a number")
        return min(int(text), largest)

    @property
    def repo_type(self) -> str:
        """`model`, `dataset` or `space`, from the path."""
        return TYPE_PATHS[self.params.get("types", "models")]

    @cached_property
    def repo(self) -> Repo:
        """The repository in the path, which the caller may see. 401 or 404 otherwise."""
        return self.hub.readable(self.caller, self.repo_type, self.params["namespace"], self.params["name"])

    def own_repo(self) -> Repo:
        """The repository in the path, to be changed by its owner. 401, 403 or 404 otherwise."""
        self.hub.require_writer(self.caller)
        self.hub.require_owner(self.caller, self.repo.namespace)
        return self.repo

    def contribute_repo(self) -> Repo:
        """The repository in the path, for one who may propose changes: anyone who sees it and may write."""
        self.hub.require_writer(self.caller)
        return self.repo

    def revision(self, name: str | None = None) -> Revision:
        """The commit that the `rev` of the path (or `name`) means. 404 otherwise."""
        wanted = self.params.get("rev", revisions.MAIN) if name is None else name
        return revisions.resolve(self.hub.database.connection(), self.repo.id, wanted)

    def tree(self, revision: Revision) -> Tree:
        """The files of a commit of the repository."""
        return load_tree(self.hub.database.connection(), self.repo.id, revision.tree)

    def next_page(self, **changes: str | int) -> dict[str, str]:
        """A `Link` header to this request with other query parameters."""
        pairs = [(key, value) for key, value in self.request.query_params.multi_items() if key not in changes]
        query = urlencode([*pairs, *changes.items()])
        return {"Link": f'<{self.base}{self.request.url.path}?{query}>; rel="next"'}


Handler = Callable[[Call], Response]
AsyncHandler = Callable[[Call], Awaitable[Response]]


def route(path: str, handler: Handler, *methods: str, types: str = "", users: bool = True) -> Route:
    """A route whose handler gets the body as JSON (or a form) of at most 10 MiB.

    A token that nobody has is refused at once, unless the route is not for tokens of `users`.
    """

    async def endpoint(request: Request) -> Response:
        call = make_call(request, types, users=users)
        if request.method not in {"GET", "HEAD"}:
            call.body = await read_body(request)
        return await run_in_threadpool(handler, call)

    return Route(path, endpoint, methods=list(methods) or ["GET"])


def streaming(path: str, handler: AsyncHandler, *methods: str, types: str = "", users: bool = True) -> Route:
    """A route whose handler reads the body itself."""

    async def endpoint(request: Request) -> Response:
        return await handler(make_call(request, types, users=users))

    return Route(path, endpoint, methods=list(methods))


def api_paths(suffix: str) -> Iterator[tuple[str, str]]:
    """(repository type, path) of an API address, for each type."""
    for types in TYPE_PATHS:
        yield types, f"/api/{types}/{{namespace}}/{{name}}{suffix}"


def site_paths(suffix: str) -> Iterator[tuple[str, str]]:
    """(repository type, path) of a page or file address, for each type; models have no prefix."""
    for types in reversed(TYPE_PATHS):
        yield types, f"{'' if types == 'models' else '/' + types}/{{namespace}}/{{name}}{suffix}"


def api_routes(suffix: str, handler: Handler, *methods: str) -> list[BaseRoute]:
    """`route` for `/api/{models,datasets,spaces}/{namespace}/{name}` + `suffix`."""
    return [route(path, handler, *methods, types=types) for types, path in api_paths(suffix)]


def site_routes(suffix: str, handler: Handler, *methods: str) -> list[BaseRoute]:
    """`route` for `[/datasets,/spaces]/{namespace}/{name}` + `suffix`."""
    return [route(path, handler, *methods, types=types) for types, path in site_paths(suffix)]


def make_call(request: Request, types: str, *, users: bool) -> Call:
    """The call of a request; path parameters are still percent-encoded there, and decoded here."""
    try:
        params = {key: unquote(str(value), errors="strict") for key, value in request.path_params.items()}
    except UnicodeDecodeError:
        raise bad_request("The address is not UTF-8") from None
    if types:
        params["types"] = types
    call = Call(request, params)
    if users:
        call.hub.users.identify(request.headers.get("authorization"))
    return call


async def read_limited(request: Request, limit: int) -> bytes:
    """The whole body. 413 when it has more than `limit` bytes."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise Refusal(413, f"The request has more than {limit} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise Refusal(413, f"The request has more than {limit} bytes")
    return bytes(body)


async def read_body(request: Request) -> dict[str, Any]:
    """The body as an object: JSON, or a form whose values are lists. 400 otherwise."""
    raw = await read_limited(request, MAX_BODY)
    if not raw:
        return {}
    try:
        if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return dict(parse_qs(raw.decode(), keep_blank_values=True, max_num_fields=20_000, errors="strict"))
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise bad_request("The body is neither JSON nor a form") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_request("The body is not a JSON object")
    return value


async def buffered(request: Request, size: int) -> AsyncIterator[bytes]:
    """The body in pieces of about `size` bytes."""
    pieces: list[bytes] = []
    length = 0
    async for chunk in request.stream():
        pieces.append(chunk)
        length += len(chunk)
        if length >= size:
            yield b"".join(pieces)
            pieces, length = [], 0
    if pieces:
        yield b"".join(pieces)


def answer(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return JSONResponse(document, status, headers)


def refused(refusal: Refusal) -> Response:
    """The answer to a refused API request, in the Hub's shape."""
    headers = {"X-Error-Message": _header_text(refusal.message), **refusal.headers}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return JSONResponse({"error": refusal.message, **refusal.body}, refusal.status, headers)


def _header_text(text: str) -> str:
    printable = "".join(character if " " <= character <= "~" else "?" for character in text)
    return printable[:500]
