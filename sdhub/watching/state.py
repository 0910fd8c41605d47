"""What a watcher knows, in SQLite: sources it has looked at, and what became of each task.

A task is claimed before it is begun and settled after it, each in a transaction of its own. A claim that a killed
process left is seen by the next one (`recover`), and begun again: the work itself may be done twice, and has the
same result. One process at a time holds a state; threads of it may share it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sdhub.errors import UsageError
from sdhub.watching.orders import Order, Outcome, Task

ATTEMPTS = 3
BUSY_SECONDS = 60
SCHEMA = """
CREATE TABLE IF NOT EXISTS source (
  repository TEXT NOT NULL,
  sha TEXT NOT NULL,
  wanted TEXT NOT NULL,
  reason TEXT,
  seen_at TEXT NOT NULL,
  PRIMARY KEY (repository, sha, wanted)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS task (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  repository TEXT NOT NULL,
  sha TEXT NOT NULL,
  recipe TEXT NOT NULL,
  target TEXT NOT NULL,
  variant TEXT NOT NULL,
  backend TEXT NOT NULL,
  status TEXT NOT NULL DEFAULT 'pending',
  attempts INTEGER NOT NULL DEFAULT 0,
  detail TEXT NOT NULL DEFAULT '',
  changed_at TEXT NOT NULL,
  UNIQUE (repository, sha, recipe, target)
);
CREATE INDEX IF NOT EXISTS task_status ON task (status, number);
CREATE TABLE IF NOT EXISTS mark (query TEXT PRIMARY KEY, moment TEXT NOT NULL) WITHOUT ROWID;
"""
_TASK = "repository, sha, recipe, variant, backend, target"
_IS_TASK = "repository = ? AND sha = ? AND recipe = ? AND target = ?"


class State:
    """The SQLite file `path`. Raises UsageError where it is none, or another process holds it."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock, Timeout

        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{path}.lock", timeout=0)
        self._guard = threading.Lock()
        try:
            self._lock.acquire()
        except Timeout:
            raise UsageError(f"{path} is in use", hint="another watcher runs: give this one a --state") from None
        try:
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(SCHEMA)
        except sqlite3.Error as error:
            self._lock.release()
            raise UsageError(f"{path} is no state of a watcher: {error}", hint="give another --state") from None

    def close(self) -> None:
        """Let others have it."""
        self._connection.close()
        self._lock.release()

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._guard:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _read(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._guard:
            return self._connection.execute(query, values).fetchall()

    def knows(self, repository: str, sha: str, wanted: str) -> bool:
        """Whether this commit was looked at for what is wanted (a hash of it)."""
        where = "repository = ? AND sha = ? AND wanted = ?"
        return bool(self._read(f"SELECT 1 FROM source WHERE {where}", repository, sha, wanted))  # noqa: S608

    def add(
        self, repository: str, sha: str, wanted: str, tasks: Sequence[Task], reason: str | None = None
    ) -> list[Task]:
        """Note that a commit was looked at, with the tasks it gives or the reason why none.

        Returns the tasks that are new; one that is known already, whatever became of it, is left alone.
        """
        new = []
        with self._write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?, ?)", (repository, sha, wanted, reason, _now())
            )
            for task in tasks:
                row = (task.repository, task.sha, task.recipe, task.variant, task.backend, task.target)
                added = connection.execute(
                    f"INSERT OR IGNORE INTO task ({_TASK}, changed_at) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                    (*row, _now()),
                )
                if added.rowcount:
                    new.append(task)
        return new

    def recover(self) -> int:
        """Take back what a killed process had begun, and what failed and may be tried again; returns how many."""
        with self._write() as connection:
            return connection.execute(
                "UPDATE task SET status = 'pending' WHERE status = 'running' "
                "OR (status = 'failed' AND attempts < ?)",
                (ATTEMPTS,),
            ).rowcount

    def claim(self) -> Order | None:
        """The oldest pending tasks of one source and backend, now running; None where nothing is pending.

        A task that was begun `ATTEMPTS` times and never settled (it may have killed the process) has failed.
        """
        with self._write() as connection:
            connection.execute(
                "UPDATE task SET status = 'failed', detail = 'it was begun several times and never ended', "
                "changed_at = ? WHERE status = 'pending' AND attempts >= ?",
                (_now(), ATTEMPTS),
            )
            first = connection.execute(
                "SELECT repository, sha, backend FROM task WHERE status = 'pending' ORDER BY number LIMIT 1"
            ).fetchone()
            if first is None:
                return None
            alike = "status = 'pending' AND repository = ? AND sha = ? AND backend = ?"
            rows = connection.execute(
                f"SELECT {_TASK} FROM task WHERE {alike} ORDER BY number",  # noqa: S608
                tuple(first),
            ).fetchall()
            connection.execute(
                "UPDATE task SET status = 'running', attempts = attempts + 1, changed_at = ? "  # noqa: S608
                f"WHERE {alike}",
                (_now(), *first),
            )
        return Order(tuple(Task(**dict(row)) for row in rows))

    def settle(self, task: Task, outcome: Outcome) -> None:
        """Note what became of a task."""
        with self._write() as connection:
            connection.execute(
                f"UPDATE task SET status = ?, detail = ?, changed_at = ? WHERE {_IS_TASK}",  # noqa: S608
                (outcome.status, outcome.detail, _now(), task.repository, task.sha, task.recipe, task.target),
            )

    def attempts(self, task: Task) -> int:
        """How often it was begun."""
        rows = self._read(
            f"SELECT attempts FROM task WHERE {_IS_TASK}",  # noqa: S608
            *(task.repository, task.sha, task.recipe, task.target),
        )
        return int(rows[0]["attempts"]) if rows else 0

    def mark(self, query: str) -> datetime | None:
        """Up to when all changes that a query finds were looked at."""
        rows = self._read("SELECT moment FROM mark WHERE query = ?", query)
        return datetime.fromisoformat(rows[0]["moment"]) if rows else None

    def set_mark(self, query: str, moment: datetime) -> None:
        """All that the query finds up to `moment` was looked at."""
        with self._write() as connection:
            connection.execute("INSERT OR REPLACE INTO mark VALUES (?, ?)", (query, moment.isoformat()))

    def counts(self) -> dict[str, int]:
        """How many tasks there are of each status."""
        rows = self._read("SELECT status, COUNT(*) AS count FROM task GROUP BY status ORDER BY status")
        return {row["status"]: row["count"] for row in rows}

    def tasks(self) -> list[dict[str, Any]]:
        """All tasks, oldest first, with status, attempts, detail and the time of the last change."""
        return [dict(row) for row in self._read("SELECT * FROM task ORDER BY number")]

    def refusals(self) -> list[dict[str, Any]]:
        """Sources of which nothing can be made, with the reason."""
        rows = self._read("SELECT repository, sha, reason FROM source WHERE reason IS NOT NULL ORDER BY seen_at")
        return [dict(row) for row in rows]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
