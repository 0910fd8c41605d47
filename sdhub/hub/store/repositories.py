"""Repositories: create, find, list, move, delete, and their settings."""

from __future__ import annotations

from dataclasses import dataclass
from sqlite3 import Connection, Row
from typing import Final

from sdhub.hub.errors import Refusal, bad_request
from sdhub.hub.store.clock import now

GATES: Final = ("", "auto", "manual")


@dataclass(frozen=True)
class Repo:
    """A repository. `gated` is "", "auto" or "manual"; `sdk` is set for Spaces only."""

    id: int
    type: str
    namespace: str
    name: str
    private: bool
    gated: str
    sdk: str
    created_at: str
    updated_at: str

    @property
    def full_name(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def url_path(self) -> str:
        """The path of its page: `/ns/name`, `/datasets/ns/name` or `/spaces/ns/name`."""
        return f"/{self.full_name}" if self.type == "model" else f"/{self.type}s/{self.full_name}"


def find(connection: Connection, kind: str, namespace: str, name: str) -> Repo | None:
    """A repository by its name, or by a name it had before it was moved."""
    key = (kind, namespace, name)
    row = connection.execute("SELECT * FROM repo WHERE type = ? AND namespace = ? AND name = ?", key).fetchone()
    if row is None:
        row = connection.execute(
            "SELECT repo.* FROM alias JOIN repo ON repo.id = alias.repo_id"
            " WHERE alias.type = ? AND alias.namespace = ? AND alias.name = ?",
            key,
        ).fetchone()
    return None if row is None else _repo(row)


def create(connection: Connection, kind: str, namespace: str, name: str, *, private: bool, sdk: str) -> Repo:
    """A new, empty repository without a commit. 409 when the name is taken."""
    taken = connection.execute(
        "SELECT 1 FROM repo WHERE type = ? AND namespace = ? AND name = ?", (kind, namespace, name)
    ).fetchone()
    if taken:
        raise Refusal(409, f"You already created this {kind} repo")
    connection.execute("DELETE FROM alias WHERE type = ? AND namespace = ? AND name = ?", (kind, namespace, name))
    time = now()
    repo_id = connection.execute(
        "INSERT INTO repo (type, namespace, name, private, sdk, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (kind, namespace, name, int(private), sdk, time, time),
    ).lastrowid
    return _repo(connection.execute("SELECT * FROM repo WHERE id = ?", (repo_id,)).fetchone())


def move(connection: Connection, repo: Repo, namespace: str, name: str) -> None:
    """Rename; the old name goes on leading here until it is taken again. 409 when the new one is taken."""
    key = (repo.type, namespace, name)
    taken = connection.execute("SELECT id FROM repo WHERE type = ? AND namespace = ? AND name = ?", key).fetchone()
    if taken and taken["id"] != repo.id:
        raise Refusal(409, f"The name {namespace}/{name} is taken")
    connection.execute("DELETE FROM alias WHERE type = ? AND namespace = ? AND name = ?", key)
    connection.execute("UPDATE repo SET namespace = ?, name = ? WHERE id = ?", (namespace, name, repo.id))
    connection.execute(
        "INSERT OR REPLACE INTO alias VALUES (?, ?, ?, ?)", (repo.type, repo.namespace, repo.name, repo.id)
    )


def delete(connection: Connection, repo: Repo) -> list[str]:
    """Remove a repository and all it has; returns the SHA-256 of the blobs it held."""
    held = [row[0] for row in connection.execute("SELECT sha256 FROM object WHERE repo_id = ?", (repo.id,))]
    connection.execute("DELETE FROM repo WHERE id = ?", (repo.id,))
    return held


def configure(connection: Connection, repo: Repo, *, private: bool | None, gated: str | None) -> None:
    """Change visibility and gating; None leaves as it is."""
    if gated is not None and gated not in GATES:
        raise bad_request("gated is one of: auto, manual, false")
    if private is not None:
        connection.execute("UPDATE repo SET private = ? WHERE id = ?", (int(private), repo.id))
    if gated is not None:
        connection.execute("UPDATE repo SET gated = ? WHERE id = ?", (gated, repo.id))


def grant(connection: Connection, repo: Repo, user: str) -> None:
    """Let a user read a gated repository's files."""
    connection.execute("INSERT OR IGNORE INTO access VALUES (?, ?)", (repo.id, user))


def has_grant(connection: Connection, repo: Repo, user: str) -> bool:
    """Whether the user was let in."""
    key = (repo.id, user)
    return connection.execute("SELECT 1 FROM access WHERE repo_id = ? AND user = ?", key).fetchone() is not None


def touch(connection: Connection, repo_id: int) -> None:
    """Note that the repository changed now."""
    connection.execute("UPDATE repo SET updated_at = ? WHERE id = ?", (now(), repo_id))


def search(connection: Connection, kind: str, *, author: str = "", text: str = "") -> list[Repo]:
    """Repositories of a type, last changed first; `text` is looked for in `namespace/name`, any case."""
    pattern = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    rows = connection.execute(
        "SELECT * FROM repo WHERE type = ? AND (? = '' OR namespace = ?)"
        " AND namespace || '/' || name LIKE ? ESCAPE '\\' ORDER BY updated_at DESC, id DESC",
        (kind, author, author, pattern),
    )
    return [_repo(row) for row in rows]


def namespaces(connection: Connection) -> list[str]:
    """Every namespace with a repository, sorted."""
    return [row[0] for row in connection.execute("SELECT DISTINCT namespace FROM repo ORDER BY namespace")]


def used_bytes(connection: Connection, repo_id: int) -> int:
    """Bytes of all blobs a repository holds, over its whole history."""
    row = connection.execute("SELECT COALESCE(SUM(size), 0) FROM object WHERE repo_id = ?", (repo_id,)).fetchone()
    return int(row[0])


def _repo(row: Row) -> Repo:
    return Repo(
        id=row["id"],
        type=row["type"],
        namespace=row["namespace"],
        name=row["name"],
        private=bool(row["private"]),
        gated=row["gated"],
        sdk=row["sdk"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
