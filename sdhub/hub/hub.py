"""The Hub as one object: its database, files, users and secret; and who may do what with a repository."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sdhub.hub.errors import Refusal
from sdhub.hub.store import repositories
from sdhub.hub.store.blobs import Blobs
from sdhub.hub.store.database import Database
from sdhub.hub.store.jobs import Job
from sdhub.hub.store.repositories import Repo
from sdhub.hub.users import Caller, Users


class Runner(Protocol):
    """What runs a Hub's Spaces (`sdhub.hub.running`)."""

    def start(self, repo: Repo) -> None:
        """Begin to run a Space's app, in the place of what runs."""

    def stop(self, repo: Repo) -> None:
        """End the app."""

    def url_of(self, repo: Repo) -> str | None:
        """Where the app answers, once it does."""

    def message_of(self, repo: Repo) -> str | None:
        """Why it failed."""


class JobRunner(Protocol):
    """What runs a Hub's jobs (`sdhub.hub.jobs`)."""

    def submit(self, job: Job, secrets: Mapping[str, str]) -> None:
        """Run a job when there is room."""

    def cancel(self, job: Job) -> None:
        """End a job that waits or runs; returns when it is ended."""


@dataclass(frozen=True, eq=False)
class EmbeddedHub:
    """All that a request needs. `loopback`: bound to this machine only; `lasting`: not ending with a parent;
    `runner`: what runs its Spaces, where they run; `jobs`: what runs its jobs, where they run.
    """

    root: Path
    database: Database
    blobs: Blobs
    users: Users
    secret: bytes
    store_id: str
    loopback: bool
    lasting: bool = True
    runner: Runner | None = None
    jobs: JobRunner | None = None

    def sign(self, *parts: object) -> str:
        """A signature over `parts` that only this store can make (hex)."""
        return hmac.new(self.secret, repr(parts).encode(), hashlib.sha256).hexdigest()

    def readable(self, caller: Caller, kind: str, namespace: str, name: str) -> Repo:
        """A repository the caller may see. As on huggingface.co, what may not be seen is not there: 401, 404."""
        repo = repositories.find(self.database.connection(), kind, namespace, name)
        if repo is None or (repo.private and not caller.owns(repo.namespace)):
            raise no_repository(caller)
        return repo

    def require_files(self, caller: Caller, repo: Repo) -> None:
        """Raise 401 or 403 GatedRepo when the caller may not read the files of a gated repository."""
        if not repo.gated or caller.owns(repo.namespace):
            return
        if caller.anonymous:
            raise Refusal(
                401,
                f"Access to model {repo.full_name} is restricted. You must be let in and give a token.",
                code="GatedRepo",
            )
        if not repositories.has_grant(self.database.connection(), repo, caller.name):
            raise Refusal(
                403, f"Access to model {repo.full_name} is restricted and you are not let in.", code="GatedRepo"
            )

    def require_writer(self, caller: Caller) -> None:
        """Raise 401 without a token, 403 with one that only reads."""
        if caller.anonymous:
            raise Refusal(401, "Invalid username or password.")
        if not caller.writes:
            raise Refusal(403, "Forbidden: this token may only read")

    def require_owner(self, caller: Caller, namespace: str) -> None:
        """Raise 401 or 403 unless the caller may write to a namespace."""
        self.require_writer(caller)
        if not caller.owns(namespace):
            raise Refusal(403, f"Forbidden: you don't have the rights to write to the namespace {namespace}")


def no_repository(caller: Caller) -> Refusal:
    """The answer for a repository that is not there or must not be seen."""
    if caller.anonymous:
        return Refusal(401, "Invalid username or password.", code="RepoNotFound")
    return Refusal(404, "Repository not found", code="RepoNotFound")


def open_hub(root: Path, users: Users, *, loopback: bool, lasting: bool = True) -> EmbeddedHub:
    """Open (or begin) the store in `root`, and sweep away what killed processes left. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    database = Database(root / "hub.sqlite3")
    blobs = Blobs(root, database)
    secret = _meta(database, "secret", secrets.token_hex(32))
    store_id = _meta(database, "store", secrets.token_hex(8))
    blobs.sweep()
    return EmbeddedHub(root, database, blobs, users, bytes.fromhex(secret), store_id, loopback, lasting)


def _meta(database: Database, key: str, default: str) -> str:
    with database.write() as connection:
        connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, default))
        return str(connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()["value"])
