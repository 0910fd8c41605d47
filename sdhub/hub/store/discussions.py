"""Discussions and pull requests: a thread of events; a pull request also has a head, `refs/pr/N`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from sqlite3 import Connection, Row
from typing import Any

from sdhub.hub.errors import Refusal, bad_request
from sdhub.hub.store.clock import now
from sdhub.hub.store.commits import check_folders
from sdhub.hub.store.repositories import Repo
from sdhub.hub.store.revisions import MAIN, Ref, Revision, create_ref, find_ref, get, move_ref, record
from sdhub.hub.store.trees import File, Tree, changed_paths, load_tree, make_tree

MAX_TITLE = 500


@dataclass(frozen=True)
class Discussion:
    """A discussion, or a pull request when `pull`; `base_oid` is the commit it started from."""

    repo_id: int
    num: int
    pull: bool
    title: str
    author: str
    status: str
    base: str
    base_oid: str
    merge_oid: str
    created_at: str


@dataclass(frozen=True)
class Event:
    """Something that happened in a discussion: `comment`, `status-change` or `commit`, with its data."""

    id: int
    type: str
    author: str
    created_at: str
    data: dict[str, Any]


def open_discussion(
    connection: Connection,
    repo: Repo,
    author: str,
    title: str,
    text: str,
    *,
    pull: bool,
    draft: bool = False,
    base: str = MAIN,
) -> Discussion:
    """Start a discussion; for a pull request, also its head at the head of the branch `base`."""
    title = _checked_title(title)
    row = connection.execute("SELECT COALESCE(MAX(num), 0) + 1 FROM discussion WHERE repo_id = ?", (repo.id,))
    num = int(row.fetchone()[0])
    branch = find_ref(connection, repo.id, base)
    if branch is None or branch.kind != "branch":
        raise bad_request("A pull request starts from a branch")
    status = "draft" if pull and draft else "open"
    connection.execute(
        "INSERT INTO discussion (repo_id, num, pull, title, author, status, base, base_oid, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (repo.id, num, int(pull), title, author, status, branch.full, branch.oid, now()),
    )
    if pull:
        create_ref(connection, repo.id, Ref("pr", str(num), branch.oid))
    if text.strip():
        add_comment(connection, repo, num, author, text)
    return get_discussion(connection, repo, num)


def _checked_title(title: str) -> str:
    title = title.strip()
    if not 1 <= len(title) <= MAX_TITLE:
        raise bad_request(f"A title has between 1 and {MAX_TITLE} characters")
    return title


def get_discussion(connection: Connection, repo: Repo, num: int) -> Discussion:
    """A discussion by number. 404 when there is none."""
    row = connection.execute("SELECT * FROM discussion WHERE repo_id = ? AND num = ?", (repo.id, num)).fetchone()
    if row is None:
        raise Refusal(404, f"There is no discussion {num}")
    return _discussion(row)


def list_discussions(connection: Connection, repo: Repo) -> list[Discussion]:
    """All discussions, newest first."""
    rows = connection.execute("SELECT * FROM discussion WHERE repo_id = ? ORDER BY num DESC", (repo.id,))
    return [_discussion(row) for row in rows]


def events(connection: Connection, discussion: Discussion) -> list[Event]:
    """What happened in a discussion, oldest first."""
    rows = connection.execute(
        "SELECT * FROM event WHERE repo_id = ? AND num = ? ORDER BY id", (discussion.repo_id, discussion.num)
    )
    return [_event(row) for row in rows]


def add_comment(connection: Connection, repo: Repo, num: int, author: str, text: str) -> Event:
    """Add a comment."""
    return _add_event(connection, repo, num, "comment", author, {"text": text})


def add_commit(connection: Connection, repo: Repo, num: int, revision: Revision) -> Event:
    """Note a commit to a pull request."""
    return _add_event(
        connection, repo, num, "commit", revision.author, {"subject": revision.title, "oid": revision.oid}
    )


def set_status(connection: Connection, repo: Repo, num: int, author: str, status: str) -> Event:
    """Open or close. 400 for another status, or when it was merged."""
    if status not in {"open", "closed", "draft"}:
        raise bad_request("A status is open or closed")
    if get_discussion(connection, repo, num).status == "merged":
        raise bad_request("The pull request was merged")
    connection.execute("UPDATE discussion SET status = ? WHERE repo_id = ? AND num = ?", (status, repo.id, num))
    return _add_event(connection, repo, num, "status-change", author, {"status": status})


def set_title(connection: Connection, repo: Repo, num: int, author: str, title: str) -> Event:
    """Rename."""
    title = _checked_title(title)
    old = get_discussion(connection, repo, num).title
    connection.execute("UPDATE discussion SET title = ? WHERE repo_id = ? AND num = ?", (title, repo.id, num))
    return _add_event(connection, repo, num, "title-change", author, {"from": old, "to": title})


def pull_trees(connection: Connection, discussion: Discussion) -> tuple[Tree, Tree]:
    """The trees a pull request started from and arrived at."""
    head = find_ref(connection, discussion.repo_id, f"refs/pr/{discussion.num}")
    base = get(connection, discussion.repo_id, discussion.base_oid)
    tip = get(connection, discussion.repo_id, head.oid) if head else base
    return (
        load_tree(connection, discussion.repo_id, base.tree),
        load_tree(connection, discussion.repo_id, tip.tree),
    )


def conflicts(connection: Connection, discussion: Discussion) -> list[str]:
    """Paths that a pull request and `main` changed differently since it started."""
    if not discussion.pull or discussion.status == "merged":
        return []
    before, after = pull_trees(connection, discussion)
    main = _base_tree(connection, discussion)[2].files
    return [
        path
        for path in changed_paths(before, after)
        if main.get(path) != before.files.get(path) and main.get(path) != after.files.get(path)
    ]


def merge(connection: Connection, repo: Repo, num: int, author: str) -> Revision:
    """Put a pull request's changes on its branch as one commit. 409 on conflicts, 400 when it is not open."""
    discussion = get_discussion(connection, repo, num)
    if not discussion.pull or discussion.status not in {"open", "draft"}:
        raise bad_request("Only an open pull request can be merged")
    clashes = conflicts(connection, discussion)
    if clashes:
        raise Refusal(409, f"The pull request conflicts with main in: {', '.join(clashes[:10])}")
    before, after = pull_trees(connection, discussion)
    ref, head, main = _base_tree(connection, discussion)
    files = _merged(before, after, main)
    merged = make_tree(files.values())
    revision = head
    if merged.key != head.tree:
        revision = record(connection, repo.id, head, merged, author, f"{discussion.title} (#{num})", "")
        move_ref(connection, repo.id, ref, revision.oid)
    connection.execute(
        "UPDATE discussion SET status = 'merged', merge_oid = ? WHERE repo_id = ? AND num = ?",
        (revision.oid, repo.id, num),
    )
    _add_event(connection, repo, num, "status-change", author, {"status": "merged"})
    return revision


def _merged(before: Tree, after: Tree, main: Tree) -> dict[str, File]:
    files = dict(main.files)
    for path in changed_paths(before, after):
        if path in after.files:
            files[path] = after.files[path]
        else:
            files.pop(path, None)
    check_folders(files, files)
    return files


def _base_tree(connection: Connection, discussion: Discussion) -> tuple[Ref, Revision, Tree]:
    ref = find_ref(connection, discussion.repo_id, discussion.base)
    if ref is None:
        raise bad_request("The branch of the pull request is gone")
    head = get(connection, discussion.repo_id, ref.oid)
    return ref, head, load_tree(connection, discussion.repo_id, head.tree)


def _add_event(
    connection: Connection, repo: Repo, num: int, kind: str, author: str, data: dict[str, Any]
) -> Event:
    time = now()
    rowid = connection.execute(
        "INSERT INTO event (repo_id, num, type, author, created_at, data) VALUES (?, ?, ?, ?, ?, ?)",
        (repo.id, num, kind, author, time, json.dumps(data)),
    ).lastrowid
    return Event(rowid or 0, kind, author, time, data)


def _discussion(row: Row) -> Discussion:
    values = {key: row[key] for key in row.keys()}  # noqa: SIM118 — iterating a Row gives values
    return Discussion(**{**values, "pull": bool(row["pull"])})


def _event(row: Row) -> Event:
    return Event(row["id"], row["type"], row["author"], row["created_at"], json.loads(row["data"]))
