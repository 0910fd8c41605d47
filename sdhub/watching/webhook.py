"""A webhook of the Hub: a model changed, and its variants are made.

The secret is mandatory, and compared in constant time before a byte of the body is read. A delivery counts once:
the same bytes a second time are refused, and so is a commit that is no longer the head of its repository, which is
what an old delivery names. What is accepted is noted before it is answered; the state of the watcher that does the
work tells (repository, SHA, recipe) apart.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.checkpoint.remote import SHA
from sdhub.checkpoint.source import REPOSITORY
from sdhub.core.errors import HubError, UsageError
from sdhub.watching.store import Damaged, open_store

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

HEADER = "X-Webhook-Secret"
MAX_BODY = 64 * 2**10
MIN_SECRET = 16
KEPT = 100_000  # deliveries that are remembered
MOST_WAITING = 200
SCHEMA = """
CREATE TABLE IF NOT EXISTS delivery (number INTEGER PRIMARY KEY AUTOINCREMENT, sha256 TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS change (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  repository TEXT NOT NULL,
  sha TEXT NOT NULL,
  UNIQUE (repository, sha)
);
"""
CHANGES = {("create", "repo"), ("update", "repo"), ("create", "repo.content"), ("update", "repo.content")}

logger = logging.getLogger("sdhub.webhook")


class Refused(Exception):
    """A delivery that is not taken: status, and a word for the sender that tells nothing."""

    def __init__(self, status: int, word: str) -> None:
        super().__init__(word)
        self.status = status
        self.word = word


@dataclass(frozen=True)
class Change:
    """A model at a commit."""

    repository: str
    sha: str


class Deliveries:
    """Which deliveries came, and which changes wait, in SQLite: each is taken once, by however many threads."""

    def __init__(self, path: Path) -> None:
        self._guard = threading.Lock()
        self._connection, self.set_aside = open_store(path, SCHEMA, _sound)

    def take(self, body: bytes) -> bool:
        """Whether these bytes are new."""
        with self._guard:
            added = self._connection.execute(
                "INSERT OR IGNORE INTO delivery (sha256) VALUES (?)", (_digest(body),)
            )
            new = added.rowcount == 1
            if new:
                self._connection.execute(
                    "DELETE FROM delivery WHERE number <= (SELECT MAX(number) FROM delivery) - ?", (KEPT,)
                )
        return new

    def forget(self, body: bytes) -> None:
        """These bytes may come again: what they ask for could not be noted."""
        with self._guard:
            self._connection.execute("DELETE FROM delivery WHERE sha256 = ?", (_digest(body),))

    def note(self, change: Change) -> None:
        """A change waits. Raises HubError where too many do."""
        with self._guard:
            (waiting,) = self._connection.execute("SELECT COUNT(*) FROM change").fetchone()
            if waiting >= MOST_WAITING:
                raise HubError("too many changes wait")
            self._connection.execute(
                "INSERT OR IGNORE INTO change (repository, sha) VALUES (?, ?)", (change.repository, change.sha)
            )

    def waiting(self) -> list[Change]:
        """Changes that wait, oldest first."""
        with self._guard:
            rows = self._connection.execute("SELECT repository, sha FROM change ORDER BY number").fetchall()
        return [Change(*row) for row in rows]

    def settle(self, change: Change) -> None:
        """A change waits no more."""
        with self._guard:
            self._connection.execute(
                "DELETE FROM change WHERE repository = ? AND sha = ?", (change.repository, change.sha)
            )


class Webhook:
    """The endpoint. `head` says which commit a repository is at; `wake` is called when a change waits.

    Raises UsageError for a secret that is missing or short.
    """

    def __init__(
        self,
        secret: str,
        deliveries: Deliveries,
        head: Callable[[str], str | None],
        wake: Callable[[], None],
    ) -> None:
        if len(secret) < MIN_SECRET:
            raise UsageError(
                f"a webhook needs a secret of at least {MIN_SECRET} characters",
                hint='make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"',
            )
        self._secret = secret.encode()
        self._deliveries = deliveries
        self._head = head
        self._wake = wake

    async def __call__(self, request: Request) -> Response:
        """Answer a delivery: 202 taken, 200 of no interest, 401, 400, 409 known or old, 413, 503 try again."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse

        try:
            self.authorize(request.headers.getlist(HEADER))
            body = await read(request)
            status, word = await run_in_threadpool(self.deliver, body)
        except Refused as refused:
            status, word = refused.status, refused.word
            logger.warning("webhook refused: %d %s", status, word)
        return JSONResponse({"status": word}, status)

    def authorize(self, given: list[str]) -> None:
        """Raises Refused unless there is one secret, and it is ours."""
        offered = given[0].encode("utf-8", "surrogateescape") if len(given) == 1 else b""
        if not hmac.compare_digest(hashlib.sha256(offered).digest(), hashlib.sha256(self._secret).digest()):
            raise Refused(401, "unauthorized")

    def deliver(self, body: bytes) -> tuple[int, str]:
        """Take a delivery whose sender is known. Raises Refused."""
        change = parse(body)
        if change is None:
            return 200, "of no interest"
        if not self._deliveries.take(body):
            raise Refused(409, "known already")
        try:
            if self._head(change.repository) != change.sha:
                raise Refused(409, "not the head of its repository")
            self._deliveries.note(change)
        except Refused:
            raise
        except Exception as error:  # whatever it is: the delivery may come again
            self._deliveries.forget(body)
            raise Refused(503, "try again later") from error
        self._wake()
        logger.info("webhook: %s at %s", change.repository, change.sha[:12])
        return 202, "taken"


async def read(request: Request) -> bytes:
    """The body. Raises Refused for more than `MAX_BODY` bytes, as soon as that is known."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise Refused(413, "too large")
    return bytes(body)


def parse(body: bytes) -> Change | None:
    """The change that a delivery tells of; None where it is not one of a model's `main`. Raises Refused.

    The format is that of the Hub's webhooks (version 3): `event {action, scope}`, `repo {type, name, headSha}`,
    `updatedRefs [{ref, newSha}]`.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "not JSON") from None
    event, repo = _mapping(_mapping(document).get("event")), _mapping(_mapping(document).get("repo"))
    if not event or not repo:
        raise Refused(400, "no event of a repository")
    if (event.get("action"), event.get("scope")) not in CHANGES or repo.get("type") != "model":
        return None
    name, sha = repo.get("name"), repo.get("headSha")
    if not isinstance(name, str) or not REPOSITORY.fullmatch(name):
        raise Refused(400, "no name of a repository")
    if not isinstance(sha, str) or not SHA.fullmatch(sha):
        raise Refused(400, "no commit")
    refs = document.get("updatedRefs")
    if isinstance(refs, list) and refs and not any(_mapping(ref).get("ref") == "refs/heads/main" for ref in refs):
        return None
    return Change(name, sha)


def _sound(connection: sqlite3.Connection) -> None:
    wrong = "typeof(repository) != 'text' OR typeof(sha) != 'text'"
    if connection.execute(f"SELECT 1 FROM change WHERE {wrong} LIMIT 1").fetchone():  # noqa: S608
        raise Damaged("its changes hold what is no text")
    connection.execute("SELECT number, sha256 FROM delivery LIMIT 1")


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
