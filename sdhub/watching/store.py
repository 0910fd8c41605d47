"""SQLite files of a watcher, which may be damaged: set aside as `.damaged` and told of, never read wrongly."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from sdhub.core.errors import UsageError

BUSY_SECONDS = 60
MAX_BYTES = 2**30
MAGIC = b"SQLite format 3\0"
BESIDE = ("-wal", "-shm")
WAY_OUT = "give another --state, or move the file away: what is published is seen on the Hub, and not done again"


class Damaged(Exception):
    """A file of ours that cannot be trusted; the message says why."""


def open_store(
    path: Path, schema: str, sound: Callable[[sqlite3.Connection], None]
) -> tuple[sqlite3.Connection, Path | None]:
    """The database, and where a damaged one was set aside to.

    `sound` raises Damaged (or ValueError, sqlite3.Error) where rows are not what they should be. Raises UsageError
    for what is no such file at all, which is left alone, and for one that cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _open(path, schema, sound), None
        except (Damaged, ValueError, TypeError, OverflowError, sqlite3.DatabaseError) as error:
            if not _is_ours(path) or _passing(error):
                raise UsageError(f"{path} is no state of a watcher: {error}", hint=WAY_OUT) from None
        aside = _set_aside(path)
        return _open(path, schema, sound), aside
    except (OSError, sqlite3.Error) as error:
        raise UsageError(f"{path} cannot be opened: {error}", hint=WAY_OUT) from None


def _open(path: Path, schema: str, sound: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    if path.exists() and path.stat().st_size > MAX_BYTES:
        raise Damaged(f"it has {path.stat().st_size / 1e9:.1f} GB")
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise Damaged(" ".join(str(said).split())[:200])
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if names and not any(f"TABLE IF NOT EXISTS {name} " in schema for name in names):
            raise UsageError(f"{path} is no state of a watcher: it is a database of something else", hint=WAY_OUT)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(schema)
        sound(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _is_ours(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def _passing(error: Exception) -> bool:
    """Whether it says nothing of the file: another process has it, it may not be written, the disk is full."""
    words = ("locked", "readonly", "unable to open", "full", "disk i/o")
    return isinstance(error, sqlite3.OperationalError) and any(word in str(error).lower() for word in words)


def _set_aside(path: Path) -> Path:
    """Move a file and what SQLite has beside it to the first free name."""
    number = 0
    while (aside := path.with_name(f"{path.name}.damaged{f'.{number}' if number else ''}")).exists():
        number += 1
    for end in ("", *BESIDE):
        part = path.with_name(path.name + end)
        if part.exists():
            part.rename(aside.with_name(aside.name + end))
    return aside
