"""Content-addressed files: `blobs/ab/cd/<sha256>`, written to a temporary file, synced, then renamed.

A file under `blobs/` is always whole. It is renamed into place, and unlinked, only inside a write transaction of
the database, which also says which repositories hold it (`object`); what no repository holds is swept away.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from types import TracebackType

from sdhub.hub.errors import Refusal
from sdhub.hub.names import is_sha256
from sdhub.hub.store.database import Database

STALE_SECONDS = 6 * 3600.0
RESERVE_BYTES = 256 * 2**20
SYNC_THREADS = 16


@dataclass(frozen=True)
class Staged:
    """A finished temporary file, on its way to become a blob."""

    path: Path
    sha256: str
    size: int

    def discard(self) -> None:
        """Remove the temporary file if it is still there."""
        self.path.unlink(missing_ok=True)


class StagingFile:
    """A temporary file that hashes while it is written. Leaving the `with` block unfinished removes it."""

    def __init__(self, folder: Path) -> None:
        handle, name = tempfile.mkstemp(dir=folder)
        self._file = os.fdopen(handle, "wb", buffering=0)
        self._path = Path(name)
        self._hash = hashlib.sha256()
        self._finished = False
        self.size = 0

    def __enter__(self) -> StagingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not self._finished:
            self._path.unlink(missing_ok=True)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append and hash."""
        view = memoryview(data)
        self._hash.update(view)
        self.size += len(view)
        while view:
            view = view[self._file.write(view) :]

    def finish(self, *, sync: bool = True) -> Staged:
        """Close, synced to disk unless `Blobs.sync` will; the file stays until it is installed or discarded."""
        if sync:
            os.fsync(self._file.fileno())
        self._file.close()
        self._finished = True
        return Staged(self._path, self._hash.hexdigest(), self.size)


class Blobs:
    """The files of a Hub below `root`."""

    def __init__(self, root: Path, database: Database) -> None:
        self._blobs = root / "blobs"
        self._staging = root / "staging"
        self._database = database
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._staging.mkdir(exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the blob is, or would be."""
        if not is_sha256(sha256):
            raise ValueError("not a SHA-256")
        return self._blobs / sha256[:2] / sha256[2:4] / sha256

    def stage(self) -> StagingFile:
        """Begin a new file."""
        return StagingFile(self._staging)

    def require_space(self, size: int) -> None:
        """Raise 507 when `size` more bytes would fill the disk."""
        if shutil.disk_usage(self._staging).free < size + RESERVE_BYTES:
            raise Refusal(507, "There is not enough disk space on this Hub for the upload")

    def sync(self, items: Sequence[Staged]) -> None:
        """Sync files that were finished without it, many at once."""
        _sync([item.path for item in items])

    def install(self, connection: Connection, repo_id: int, *items: Staged) -> None:
        """Make synced files blobs that `repo_id` holds. Call inside a write transaction."""
        folders: dict[Path, None] = {}
        for item in items:
            target = self.path(item.sha256)
            if target.exists():
                item.discard()
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                item.path.replace(target)
                folders[target.parent] = None
            self.hold(connection, repo_id, item.sha256, item.size)
        if os.name == "posix":
            _sync(list(folders))

    def hold(self, connection: Connection, repo_id: int, sha256: str, size: int) -> None:
        """Note that a repository holds a blob."""
        connection.execute("INSERT OR IGNORE INTO object VALUES (?, ?, ?)", (repo_id, sha256, size))

    def held_size(self, connection: Connection, repo_id: int, sha256: str) -> int | None:
        """The size of a blob that the repository holds, else None."""
        row = connection.execute(
            "SELECT size FROM object WHERE repo_id = ? AND sha256 = ?", (repo_id, sha256)
        ).fetchone()
        return None if row is None else int(row["size"])

    def collect(self, candidates: list[str] | None = None) -> int:
        """Remove blobs that no repository holds (all of them, or the named ones); returns how many."""
        removed = 0
        for sha256 in self._all() if candidates is None else candidates:
            with self._database.write() as connection:
                if connection.execute("SELECT 1 FROM object WHERE sha256 = ?", (sha256,)).fetchone() is None:
                    self.path(sha256).unlink(missing_ok=True)
                    removed += 1
        return removed

    def sweep(self) -> None:
        """Remove what killed processes left: unheld blobs, and temporary files that nobody writes to any more."""
        held = {row[0] for row in self._database.connection().execute("SELECT DISTINCT sha256 FROM object")}
        self.collect([sha256 for sha256 in self._all() if sha256 not in held])
        oldest = time.time() - STALE_SECONDS
        for path in self._staging.iterdir():
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)

    def _all(self) -> Iterator[str]:
        for path in self._blobs.glob("??/??/*"):
            if is_sha256(path.name):
                yield path.name


def _sync(paths: list[Path]) -> None:
    """fsync files or folders. At the same time, because file systems then write their journal once for many."""
    if len(paths) < 2:
        for path in paths:
            _sync_one(path)
        return
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        for _ in pool.map(_sync_one, paths):
            pass


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
