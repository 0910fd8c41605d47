"""What a watcher knows, in SQLite: sources it has looked at, and what became of each task.

A task is claimed before it is begun and settled after it, each in a transaction of its own. A claim that a killed
process left is seen by the next one (`recover`), and begun again: the work itself may be done twice, and has the
same result. What fails is tried again, a few times, each wait twice as long as the one before. One process at a
time holds a state; threads of it may share it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

from sdhub.core.errors import SdhubError, UsageError
from sdhub.watching.orders import Order, Outcome, Status, Task
from sdhub.watching.store import Damaged, open_store

ATTEMPTS = 3  # at a task
LOOKS = 6  # at a source
FIRST_WAIT = 600  # seconds after the first failure; each further wait is twice as long
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
CREATE TABLE IF NOT EXISTS trouble (
  repository TEXT NOT NULL,
  sha TEXT NOT NULL,
  wanted TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  reason TEXT NOT NULL,
  changed_at TEXT NOT NULL,
  PRIMARY KEY (repository, sha, wanted)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS mark (query TEXT PRIMARY KEY, moment TEXT NOT NULL) WITHOUT ROWID;
"""
_TASK = "repository, sha, recipe, variant, backend, target"
_IS_SOURCE = "repository = ? AND sha = ? AND wanted = ?"
_WAITED = "strftime('%s', 'now') - strftime('%s', changed_at) >= ? * (1 << (min(attempts, 20) - 1))"
_TEXTS = {
    "source": ("repository", "sha", "wanted", "seen_at"),
    "task": ("repository", "sha", "recipe", "target", "variant", "backend", "status", "detail", "changed_at"),
    "trouble": ("repository", "sha", "wanted", "reason", "changed_at"),
    "mark": ("query", "moment"),
}
_COUNTS = {"task": ("number", "attempts"), "trouble": ("attempts",)}
_IS_TASK = "repository = ? AND sha = ? AND recipe = ? AND target = ?"


class State:
    """The SQLite file `path`. Raises UsageError where it is none, or another process holds it.

    One that is damaged is set aside, to `set_aside`, and a new one begun. Methods raise SdhubError where the file
    cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        from filelock import FileLock, Timeout

        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{path} cannot be made: {error.strerror}", hint="give another --state") from None
        self._lock = FileLock(f"{path}.lock", timeout=0)
        self._guard = threading.Lock()
        try:
            self._lock.acquire()
        except Timeout:
            raise UsageError(f"{path} is in use", hint="another watcher runs: give this one a --state") from None
        try:
            self._connection, self.set_aside = open_store(path, SCHEMA, _sound)
        except UsageError:
            self._lock.release()
            raise

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
        with self._guard, self._telling():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise SdhubError(
                f"{self.path} cannot be used: {error}", hint="is there room, and may it be written? Then run again"
            ) from None

    def _read(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._guard, self._telling():
            return self._connection.execute(query, values).fetchall()

    def knows(self, repository: str, sha: str, wanted: str) -> bool:
        """Whether this commit was looked at for what is wanted (a hash of it)."""
        return bool(self._read(f"SELECT 1 FROM source WHERE {_IS_SOURCE}", repository, sha, wanted))  # noqa: S608

    def waits(self, repository: str, sha: str, wanted: str) -> bool:
        """Whether looking at this commit failed, and its time to be looked at again has not come."""
        where = f"{_IS_SOURCE} AND NOT ({_WAITED})"
        return bool(
            self._read(f"SELECT 1 FROM trouble WHERE {where}", repository, sha, wanted, FIRST_WAIT)  # noqa: S608
        )

    def trouble(self, repository: str, sha: str, wanted: str, reason: str) -> bool:
        """Note that looking at a commit failed; whether that was the last try, and it is known from now on."""
        with self._write() as connection:
            (attempts,) = connection.execute(
                "INSERT INTO trouble VALUES (?, ?, ?, 1, ?, ?) ON CONFLICT DO UPDATE SET "
                "attempts = attempts + 1, reason = excluded.reason, changed_at = excluded.changed_at "
                "RETURNING attempts",
                (repository, sha, wanted, reason, _now()),
            ).fetchone()
            if attempts >= LOOKS:
                connection.execute(
                    "INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?, ?)",
                    (repository, sha, wanted, f"given up after {attempts} looks: {reason}", _now()),
                )
        return bool(attempts >= LOOKS)

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
            connection.execute(f"DELETE FROM trouble WHERE {_IS_SOURCE}", (repository, sha, wanted))  # noqa: S608
            for task in tasks:
                row = (task.repository, task.sha, task.recipe, task.variant, task.backend, task.target)
                added = connection.execute(
                    f"INSERT OR IGNORE INTO task ({_TASK}, changed_at) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                    (*row, _now()),
                )
                if added.rowcount:
                    new.append(task)
        return new

    def recover(self, *, at_once: bool = True) -> int:
        """Take back what a killed process had begun, and what failed and may be tried again; returns how many.

        Not `at_once`: what failed waits first, longer after each try.
        """
        with self._write() as connection:
            return connection.execute(
                "UPDATE task SET status = 'pending' WHERE status = 'running' "  # noqa: S608
                f"OR (status = 'failed' AND attempts < ? AND {_WAITED})",
                (ATTEMPTS, 0 if at_once else FIRST_WAIT),
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

    def sent(self) -> dict[Task, str]:
        """Tasks that were sent to be done elsewhere, with the address of what does each."""
        rows = self._read(f"SELECT {_TASK}, detail FROM task WHERE status = 'dispatched' ORDER BY number")  # noqa: S608
        return {Task(*tuple(row)[:-1]): str(row["detail"]) for row in rows}

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

    def troubles(self) -> list[dict[str, Any]]:
        """Sources that could not be looked at and will be again, with the reason and the looks so far."""
        rows = self._read(
            "SELECT repository, sha, reason, attempts FROM trouble WHERE attempts < ? ORDER BY changed_at", LOOKS
        )
        return [dict(row) for row in rows]


def _sound(connection: sqlite3.Connection) -> None:
    """Raises Damaged or sqlite3.Error where a row is not what this module writes."""
    for kind, columns in (("text", _TEXTS), ("integer", _COUNTS)):
        for name, fields in columns.items():
            wrong = " OR ".join(f"typeof({field}) != '{kind}'" for field in fields)
            if connection.execute(f"SELECT 1 FROM {name} WHERE {wrong} LIMIT 1").fetchone():  # noqa: S608
                raise Damaged(f"its {name}s hold what is no {kind}")
    for row in connection.execute("SELECT DISTINCT status FROM task"):
        if row["status"] not in get_args(Status):
            raise Damaged(f"a task is {row['status'][:40]!r}")
    for row in connection.execute("SELECT moment FROM mark"):
        if datetime.fromisoformat(row["moment"]).tzinfo is None:
            raise Damaged("a mark has no time zone")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
