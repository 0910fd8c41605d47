"""Collections: named lists of repositories."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from sqlite3 import Connection, IntegrityError, Row

from sdhub.hub.errors import Refusal, bad_request
from sdhub.hub.store.clock import now


@dataclass(frozen=True)
class Item:
    """One entry; `type` is model, dataset, space, paper or collection."""

    id: str
    type: str
    item_id: str
    note: str
    position: int


@dataclass(frozen=True)
class Collection:
    """A collection; `slug` is `namespace/title-words-<id>`."""

    id: str
    namespace: str
    title: str
    description: str
    private: bool
    theme: str
    updated_at: str

    @property
    def slug(self) -> str:
        """As in `local/my-models-0123456789abcdef01234567`."""
        words = re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")[:60] or "collection"
        return f"{self.namespace}/{words}-{self.id}"


def create(
    connection: Connection, namespace: str, title: object, description: object, private: bool
) -> Collection:
    """A new, empty collection. 409 (with the slug) when the namespace has one of this title."""
    if not isinstance(title, str) or not 0 < len(title.strip()) < 200:
        raise bad_request("A collection has a title of up to 200 characters")
    text = description[:2000] if isinstance(description, str) else ""
    row = connection.execute(
        "SELECT * FROM collection WHERE namespace = ? AND title = ?", (namespace, title)
    ).fetchone()
    if row is not None:
        raise Refusal(409, "A collection of this title exists", body={"slug": _collection(row).slug})
    made = Collection(secrets.token_hex(12), namespace, title, text, private, "orange", now())
    connection.execute(
        "INSERT INTO collection VALUES (?, ?, ?, ?, ?, ?, ?)",
        (made.id, namespace, title, text, int(private), made.theme, made.updated_at),
    )
    return made


def find(connection: Connection, slug: str) -> Collection:
    """A collection by its slug, of which only the id counts. 404 when there is none."""
    row = connection.execute("SELECT * FROM collection WHERE id = ?", (slug.rpartition("-")[2],)).fetchone()
    if row is None:
        raise Refusal(404, "Collection not found")
    return _collection(row)


def search(connection: Connection, owner: str) -> list[Collection]:
    """Collections of an owner ("" is all), last changed first."""
    rows = connection.execute(
        "SELECT * FROM collection WHERE ? = '' OR namespace = ? ORDER BY updated_at DESC", (owner, owner)
    )
    return [_collection(row) for row in rows]


def update(connection: Connection, collection: Collection, changes: dict[str, object]) -> None:
    """Change title, description, theme (texts) or private (a truth value)."""
    for column in ("title", "description", "theme"):
        if isinstance(changes.get(column), str):
            connection.execute(
                f"UPDATE collection SET {column} = ? WHERE id = ?",  # noqa: S608 — the columns above
                (str(changes[column])[:2000], collection.id),
            )
    if isinstance(changes.get("private"), bool):
        connection.execute("UPDATE collection SET private = ? WHERE id = ?", (changes["private"], collection.id))
    _touch(connection, collection)


def delete(connection: Connection, collection: Collection) -> None:
    """Remove a collection; what it lists stays."""
    connection.execute("DELETE FROM collection WHERE id = ?", (collection.id,))


def items(connection: Connection, collection: Collection) -> list[Item]:
    """The entries, in order."""
    rows = connection.execute(
        "SELECT * FROM collection_item WHERE collection_id = ? ORDER BY position, id", (collection.id,)
    )
    return [Item(row["id"], row["item_type"], row["item_id"], row["note"], row["position"]) for row in rows]


def add_item(connection: Connection, collection: Collection, kind: str, item_id: str, note: str) -> None:
    """Append an entry. 409 when it is there."""
    position = len(items(connection, collection))
    try:
        connection.execute(
            "INSERT INTO collection_item VALUES (?, ?, ?, ?, ?, ?)",
            (secrets.token_hex(12), collection.id, kind, item_id, note[:500], position),
        )
    except IntegrityError:
        raise Refusal(409, "The collection has this item") from None
    _touch(connection, collection)


def update_item(connection: Connection, collection: Collection, item: str, changes: dict[str, object]) -> None:
    """Change an entry's note or position."""
    key = (item, collection.id)
    if isinstance(changes.get("note"), str):
        connection.execute(
            "UPDATE collection_item SET note = ? WHERE id = ? AND collection_id = ?",
            (str(changes["note"])[:500], *key),
        )
    if isinstance(changes.get("position"), int):
        connection.execute(
            "UPDATE collection_item SET position = ? WHERE id = ? AND collection_id = ?",
            (changes["position"], *key),
        )
    _touch(connection, collection)


def delete_item(connection: Connection, collection: Collection, item: str) -> None:
    """Remove an entry. 404 when there is none."""
    gone = connection.execute(
        "DELETE FROM collection_item WHERE id = ? AND collection_id = ?", (item, collection.id)
    ).rowcount
    if not gone:
        raise Refusal(404, "Item not found")
    _touch(connection, collection)


def _touch(connection: Connection, collection: Collection) -> None:
    connection.execute("UPDATE collection SET updated_at = ? WHERE id = ?", (now(), collection.id))


def _collection(row: Row) -> Collection:
    return Collection(
        row["id"],
        row["namespace"],
        row["title"],
        row["description"],
        bool(row["private"]),
        row["theme"],
        row["updated_at"],
    )
