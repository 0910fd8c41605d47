"""Commits and the references to them: branches, tags and the heads of pull requests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from sqlite3 import Connection, IntegrityError, Row

from sdhub.hub.errors import Refusal, bad_request, no_revision
from sdhub.hub.names import is_commit
from sdhub.hub.store.clock import now
from sdhub.hub.store.repositories import touch
from sdhub.hub.store.trees import Tree, changed_paths, load_tree, make_tree, save_tree

MAIN = "main"


@dataclass(frozen=True)
class Revision:
    """A commit. `tree` is the key of its tree; `parent` is None for the first."""

    oid: str
    parent: str | None
    tree: str
    author: str
    title: str
    message: str
    created_at: str


@dataclass(frozen=True)
class Ref:
    """A reference. `kind` is `branch`, `tag` or `pr`; `full` is its git name."""

    kind: str
    name: str
    oid: str

    @property
    def full(self) -> str:
        """As in `refs/heads/main`, `refs/tags/v1`, `refs/pr/3`."""
        return {"branch": "refs/heads/", "tag": "refs/tags/", "pr": "refs/pr/"}[self.kind] + self.name


def record(
    connection: Connection,
    repo_id: int,
    parent: Revision | None,
    tree: Tree,
    author: str,
    title: str,
    message: str,
) -> Revision:
    """Keep a commit of `tree` on top of `parent`."""
    time = now()
    before = load_tree(connection, repo_id, parent.tree) if parent else make_tree([])
    lines = [f"tree {tree.folders['']}", f"listing {tree.key}", f"parent {parent.oid if parent else ''}"]
    text = "\n".join([*lines, f"author {author} {time}", "", title, message])
    oid = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    save_tree(connection, repo_id, tree)
    revision = Revision(oid, parent.oid if parent else None, tree.key, author, title, message, time)
    connection.execute(
        "INSERT OR IGNORE INTO revision VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (repo_id, oid, revision.parent, tree.key, author, title, message, time),
    )
    connection.executemany(
        "INSERT OR IGNORE INTO change VALUES (?, ?, ?)",
        [(repo_id, oid, path) for path in changed_paths(before, tree)],
    )
    touch(connection, repo_id)
    return revision


def get(connection: Connection, repo_id: int, oid: str) -> Revision:
    """A commit by its full id. 404 when there is none."""
    row = connection.execute("SELECT * FROM revision WHERE repo_id = ? AND oid = ?", (repo_id, oid)).fetchone()
    if row is None:
        raise no_revision(oid)
    return _revision(row)


def resolve(connection: Connection, repo_id: int, name: str) -> Revision:
    """The commit that a branch, tag, `refs/…` name, full id or id prefix (7 digits or more) means. 404 if none."""
    ref = find_ref(connection, repo_id, name)
    if ref is not None:
        return get(connection, repo_id, ref.oid)
    if is_commit(name):
        return get(connection, repo_id, name)
    if 7 <= len(name) < 40 and all(digit in "0123456789abcdef" for digit in name):
        rows = connection.execute(
            "SELECT * FROM revision WHERE repo_id = ? AND oid >= ? AND oid < ? LIMIT 2",
            (repo_id, name, name + "g"),
        ).fetchall()
        if len(rows) == 1:
            return _revision(rows[0])
    raise no_revision(name)


def find_ref(connection: Connection, repo_id: int, name: str) -> Ref | None:
    """A branch, tag or pull request head by short or full name."""
    for kind, short in _candidates(name):
        row = connection.execute(
            "SELECT oid FROM ref WHERE repo_id = ? AND kind = ? AND name = ?", (repo_id, kind, short)
        ).fetchone()
        if row is not None:
            return Ref(kind, short, row["oid"])
    return None


def _candidates(name: str) -> list[tuple[str, str]]:
    for kind, prefix in (("branch", "refs/heads/"), ("tag", "refs/tags/"), ("pr", "refs/pr/")):
        if name.startswith(prefix):
            return [(kind, name[len(prefix) :])]
    return [("branch", name), ("tag", name)]


def refs(connection: Connection, repo_id: int) -> list[Ref]:
    """All references: `main` first, then by name (pull requests by number)."""
    rows = connection.execute(
        "SELECT kind, name, oid FROM ref WHERE repo_id = ?"
        " ORDER BY kind, name != 'main', CASE kind WHEN 'pr' THEN CAST(name AS INTEGER) END, name",
        (repo_id,),
    )
    return [Ref(row["kind"], row["name"], row["oid"]) for row in rows]


def create_ref(connection: Connection, repo_id: int, ref: Ref) -> None:
    """A new reference. 409 when it is there."""
    try:
        connection.execute("INSERT INTO ref VALUES (?, ?, ?, ?)", (repo_id, ref.kind, ref.name, ref.oid))
    except IntegrityError:
        raise Refusal(409, f"Reference already exists: {ref.full}") from None


def move_ref(connection: Connection, repo_id: int, ref: Ref, oid: str) -> None:
    """Point a reference at another commit."""
    connection.execute(
        "UPDATE ref SET oid = ? WHERE repo_id = ? AND kind = ? AND name = ?",
        (oid, repo_id, ref.kind, ref.name),
    )


def delete_ref(connection: Connection, repo_id: int, kind: str, name: str) -> None:
    """Remove a branch or tag; the commits stay. 404 when there is none, 400 for `main`."""
    if kind == "branch" and name == MAIN:
        raise bad_request("The main branch cannot be deleted")
    gone = connection.execute(
        "DELETE FROM ref WHERE repo_id = ? AND kind = ? AND name = ?", (repo_id, kind, name)
    ).rowcount
    if not gone:
        raise no_revision(name)


# The line of first parents from :start, newest first, at most :last + 1 long.
_LINE = """
WITH RECURSIVE line (oid, depth) AS (
  VALUES (:start, 0)
  UNION ALL
  SELECT revision.parent, depth + 1 FROM line
  JOIN revision ON revision.repo_id = :repo AND revision.oid = line.oid
  WHERE revision.parent IS NOT NULL AND depth < :last
)
"""
_HISTORY = f"""{_LINE}
SELECT revision.* FROM line
JOIN revision ON revision.repo_id = :repo AND revision.oid = line.oid
WHERE depth >= :skip ORDER BY depth
"""  # noqa: S608 — constants
_COUNT = f"{_LINE} SELECT COUNT(*) FROM line"  # noqa: S608
_LAST_CHANGES = f"""{_LINE}
SELECT change.path AS path, MIN(depth) AS depth, revision.* FROM line
JOIN change ON change.repo_id = :repo AND change.oid = line.oid
JOIN revision ON revision.repo_id = :repo AND revision.oid = line.oid
WHERE substr(change.path, 1, :length) = :prefix GROUP BY change.path ORDER BY depth
"""  # noqa: S608
_WHOLE = 10**9


def history(
    connection: Connection, repo_id: int, start: str, *, skip: int = 0, limit: int = 1000
) -> list[Revision]:
    """The commits from `start` back to the first, newest first."""
    values = {"start": start, "repo": repo_id, "skip": skip, "last": skip + limit - 1}
    return [_revision(row) for row in connection.execute(_HISTORY, values)]


def count_history(connection: Connection, repo_id: int, start: str) -> int:
    """How many commits `history` has."""
    values = {"start": start, "repo": repo_id, "last": _WHOLE}
    return int(connection.execute(_COUNT, values).fetchone()[0])


def last_changes(connection: Connection, repo_id: int, start: str, folder: str) -> dict[str, Revision]:
    """For every path below `folder` ("" is the root), and its folders, the last commit that changed it."""
    prefix = f"{folder}/" if folder else ""
    values = {"start": start, "repo": repo_id, "last": _WHOLE, "prefix": prefix, "length": len(prefix)}
    found: dict[str, Revision] = {}
    for row in connection.execute(_LAST_CHANGES, values):
        path, revision = row["path"], _revision(row)
        while path and path not in found:
            found[path] = revision
            path = path.rpartition("/")[0]
    return found


def _revision(row: Row) -> Revision:
    return Revision(
        row["oid"], row["parent"], row["tree"], row["author"], row["title"], row["message"], row["created_at"]
    )
