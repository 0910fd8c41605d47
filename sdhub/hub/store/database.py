"""The SQLite file: schema, one connection per thread, write transactions.

WAL mode: readers never wait. Every change is one `BEGIN IMMEDIATE` transaction, so writers of all threads and
of all server processes on one root stand in one line, and a killed process leaves the last committed state.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

BUSY_SECONDS = 60.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS repo (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  type TEXT NOT NULL,
  namespace TEXT NOT NULL COLLATE NOCASE,
  name TEXT NOT NULL COLLATE NOCASE,
  private INTEGER NOT NULL,
  gated TEXT NOT NULL DEFAULT '',
  sdk TEXT NOT NULL DEFAULT '',
  created_at TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  UNIQUE (type, namespace, name)
);
CREATE INDEX IF NOT EXISTS repo_updated ON repo (type, updated_at);
CREATE TABLE IF NOT EXISTS alias (
  type TEXT NOT NULL,
  namespace TEXT NOT NULL COLLATE NOCASE,
  name TEXT NOT NULL COLLATE NOCASE,
  repo_id INTEGER NOT NULL REFERENCES repo (id) ON DELETE CASCADE,
  PRIMARY KEY (type, namespace, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS access (
  repo_id INTEGER NOT NULL REFERENCES repo (id) ON DELETE CASCADE,
  user TEXT NOT NULL,
  PRIMARY KEY (repo_id, user)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS object (
  repo_id INTEGER NOT NULL REFERENCES repo (id) ON DELETE CASCADE,
  sha256 TEXT NOT NULL,
  size INTEGER NOT NULL,
  PRIMARY KEY (repo_id, sha256)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS object_sha256 ON object (sha256);
CREATE TABLE IF NOT EXISTS tree (
  repo_id INTEGER NOT NULL REFERENCES repo (id) ON DELETE CASCADE,
  key TEXT NOT NULL,
  listing BLOB NOT NULL,
  PRIMARY KEY (repo_id, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revision (
  repo_id INTEGER NOT NULL REFERENCES repo (id) ON DELETE CASCADE,
  oid TEXT NOT NULL,
  parent TEXT,
  tree TEXT NOT NULL,
  author TEXT NOT NULL,
  title TEXT NOT NULL,
  message TEXT NOT NULL,
  created_at TEXT NOT NULL,
  PRIMARY KEY (repo_id, oid)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS change (
  repo_id INTEGER NOT NULL REFERENCES repo (id) ON DELETE CASCADE,
  oid TEXT NOT NULL,
  path TEXT NOT NULL,
  PRIMARY KEY (repo_id, oid, path)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ref (
  repo_id INTEGER NOT NULL REFERENCES repo (id) ON DELETE CASCADE,
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  oid TEXT NOT NULL,
  PRIMARY KEY (repo_id, kind, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS discussion (
  repo_id INTEGER NOT NULL REFERENCES repo (id) ON DELETE CASCADE,
  num INTEGER NOT NULL,
  pull INTEGER NOT NULL,
  title TEXT NOT NULL,
  author TEXT NOT NULL,
  status TEXT NOT NULL,
  base TEXT NOT NULL,
  base_oid TEXT NOT NULL,
  merge_oid TEXT NOT NULL DEFAULT '',
  created_at TEXT NOT NULL,
  PRIMARY KEY (repo_id, num)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS event (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  repo_id INTEGER NOT NULL REFERENCES repo (id) ON DELETE CASCADE,
  num INTEGER NOT NULL,
  type TEXT NOT NULL,
  author TEXT NOT NULL,
  created_at TEXT NOT NULL,
  data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS event_discussion ON event (repo_id, num);
CREATE TABLE IF NOT EXISTS space (
  repo_id INTEGER PRIMARY KEY REFERENCES repo (id) ON DELETE CASCADE,
  stage TEXT NOT NULL,
  hardware TEXT NOT NULL,
  sleep_seconds INTEGER
);
CREATE TABLE IF NOT EXISTS space_value (
  repo_id INTEGER NOT NULL REFERENCES repo (id) ON DELETE CASCADE,
  kind TEXT NOT NULL,
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  description TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  PRIMARY KEY (repo_id, kind, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS collection (
  id TEXT PRIMARY KEY,
  namespace TEXT NOT NULL,
  title TEXT NOT NULL,
  description TEXT NOT NULL,
  private INTEGER NOT NULL,
  theme TEXT NOT NULL,
  updated_at TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS collection_item (
  id TEXT PRIMARY KEY,
  collection_id TEXT NOT NULL REFERENCES collection (id) ON DELETE CASCADE,
  item_type TEXT NOT NULL,
  item_id TEXT NOT NULL,
  note TEXT NOT NULL,
  position INTEGER NOT NULL,
  UNIQUE (collection_id, item_type, item_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS job (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  namespace TEXT NOT NULL COLLATE NOCASE,
  initiator TEXT NOT NULL,
  spec TEXT NOT NULL,
  stage TEXT NOT NULL,
  message TEXT NOT NULL DEFAULT '',
  created_at TEXT NOT NULL,
  started_at TEXT NOT NULL DEFAULT '',
  finished_at TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS job_namespace ON job (namespace, number);
CREATE TABLE IF NOT EXISTS job_label (
  number INTEGER NOT NULL REFERENCES job (number) ON DELETE CASCADE,
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (number, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS job_label_value ON job_label (key, value);
CREATE TABLE IF NOT EXISTS bucket (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  namespace TEXT NOT NULL COLLATE NOCASE,
  name TEXT NOT NULL COLLATE NOCASE,
  private INTEGER NOT NULL,
  created_at TEXT NOT NULL,
  UNIQUE (namespace, name)
);
CREATE TABLE IF NOT EXISTS xet_session (
  id TEXT PRIMARY KEY,
  token_sha256 TEXT NOT NULL,
  repo_id INTEGER NOT NULL REFERENCES repo (id) ON DELETE CASCADE,
  shards INTEGER NOT NULL,
  active_at REAL NOT NULL
) WITHOUT ROWID;
"""


class Database:
    """The SQLite file of a Hub. Safe for threads and for several processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._writing = threading.Lock()
        with FileLock(f"{path}.lock"):
            self.connection().executescript(SCHEMA)

    def connection(self) -> sqlite3.Connection:
        """This thread's connection, in autocommit mode, for reading."""
        existing: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if existing is not None:
            return existing
        connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        self._local.connection = connection
        return connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: all of the block or nothing of it."""
        connection = self.connection()
        with self._writing:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
