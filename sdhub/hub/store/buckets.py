"""Buckets: folders that jobs write to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection, IntegrityError, Row

from sdhub.hub.errors import Refusal
from sdhub.hub.store.clock import now


@dataclass(frozen=True)
class Bucket:
    """A bucket; its files lie in `folder`."""

    id: int
    namespace: str
    name: str
    private: bool
    created_at: str

    @property
    def full_name(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    def folder(self, root: Path) -> Path:
        """Where the Hub whose data lie in `root` keeps its files."""
        return root / "buckets" / str(self.id)


def create(connection: Connection, namespace: str, name: str, *, private: bool) -> Bucket:
    """A new, empty bucket. 409 when the name is taken."""
    try:
        connection.execute(
            "INSERT INTO bucket (namespace, name, private, created_at) VALUES (?, ?, ?, ?)",
            (namespace, name, int(private), now()),
        )
    except IntegrityError:
        raise Refusal(409, "You already created this bucket") from None
    found = find(connection, namespace, name)
    assert found is not None
    return found


def find(connection: Connection, namespace: str, name: str) -> Bucket | None:
    """A bucket by its name."""
    key = (namespace, name)
    row = connection.execute("SELECT * FROM bucket WHERE namespace = ? AND name = ?", key).fetchone()
    return None if row is None else _bucket(row)


def search(connection: Connection, namespace: str) -> list[Bucket]:
    """All buckets of a namespace."""
    rows = connection.execute("SELECT * FROM bucket WHERE namespace = ? ORDER BY name", (namespace,))
    return [_bucket(row) for row in rows.fetchall()]


def delete(connection: Connection, bucket: Bucket) -> None:
    """Forget a bucket; its folder is the caller's to remove."""
    connection.execute("DELETE FROM bucket WHERE id = ?", (bucket.id,))


def _bucket(row: Row) -> Bucket:
    return Bucket(row["id"], row["namespace"], row["name"], bool(row["private"]), row["created_at"])
