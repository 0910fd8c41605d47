"""The work folder: each stage's result under a key of its inputs.

A stage builds into `<stage>/<key>.partial` and is renamed to `<stage>/<key>` when whole, so a result that
exists is complete, whatever was killed when; the next run finds it and goes on. A lock per key lets two runs
share one work folder. `<stage>/<key>.json` holds the key; its time is that of the last use, and who uses the
result holds it locked (shared), so that `sdhub.workflow.cache` clears only what nobody uses. `sdhub.core.kept` has
a second place for results.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdhub.core.disk import watched
from sdhub.core.kept import make_or_restore
from sdhub.core.progress import SILENT, Progress
from sdhub.core.scratch import temporary

if sys.platform != "win32":
    import fcntl


def home() -> Path:
    """`SDHUB_HOME`, or the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`) with `sdhub` in it."""
    chosen = os.environ.get("SDHUB_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "sdhub"


def canonical(document: Any) -> bytes:
    """The canonical JSON of a document: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest(document: Any) -> str:
    """SHA-256 of the canonical JSON, 64 hex digits."""
    return hashlib.sha256(canonical(document)).hexdigest()


class Work:
    """Results of stages under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: set[Path] = set()
        self._held: dict[Path, int] = {}
        weakref.finalize(self, _let_go, self._held)

    def path(self, stage: str, key: Mapping[str, Any]) -> Path:
        """Where the result of `stage` for `key` lies, whether or not it is there yet."""
        return self.root / stage / digest(key)[:32]

    def has(self, stage: str, key: Mapping[str, Any]) -> bool:
        """Whether the stage is done."""
        return self.path(stage, key).is_dir()

    def stage(
        self,
        name: str,
        key: Mapping[str, Any],
        make: Callable[[Path], None],
        *,
        progress: Progress = SILENT,
        label: str = "",
    ) -> Path:
        """The folder of a finished stage; `make` fills an empty one if it is not finished yet.

        `key` (a JSON document) holds all that the result depends on. Whatever `make` raises leaves nothing
        behind. While this object lives, nobody clears the result. Raises SdhubError where the disk is full.
        """
        from filelock import FileLock

        done = self.path(name, key)
        if self._use(done, key):
            if label and done not in self._seen:
                progress.note(f"{label}: kept from an earlier run")
            self._seen.add(done)
            return done
        done.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{done}.lock"):
            if self._use(done, key):
                return done
            if label:
                progress.note(label)
            with watched(done.parent):
                _make(done, key, lambda out: make_or_restore(name, done.name, out, make, progress))
            self._use(done, key)
        self._seen.add(done)
        return done

    def _use(self, done: Path, key: Mapping[str, Any]) -> bool:
        """Note that a result is used, and keep others from clearing it; whether it is there."""
        mark = key_file(done)
        while done.is_dir():
            if done in self._held and _same(self._held[done], mark):
                os.utime(mark)
                return True
            if not mark.exists():  # of an older sdhub, or lost
                write_atomic(mark, canonical(key))
            handle = _shared(mark)
            if handle is None:
                continue
            if done.is_dir() and _same(handle, mark):
                os.utime(mark)
                before = self._held.pop(done, None)
                if before is not None:
                    os.close(before)
                self._held[done] = handle
                return True
            os.close(handle)  # it was cleared meanwhile, and perhaps made again
        return False


def key_file(done: Path) -> Path:
    """Beside a stage's result: its key, and the time of its last use."""
    return done.with_name(f"{done.name}.json")


def _shared(mark: Path) -> int | None:
    """The file locked for one of many, as an open descriptor; waits while it is being cleared."""
    try:
        handle = os.open(mark, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if sys.platform != "win32":
        fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def _same(handle: int, mark: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), mark.stat())
    except FileNotFoundError:
        return False


def _let_go(held: dict[Path, int]) -> None:
    for handle in held.values():
        os.close(handle)
    held.clear()


def _make(done: Path, key: Mapping[str, Any], make: Callable[[Path], None]) -> None:
    partial = done.with_name(f"{done.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        make(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(partial)
    write_atomic(key_file(done), canonical(key))
    partial.rename(done)
    _sync_file(done.parent)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def publish_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make a new folder that is there whole or not at all; what `fill` raises leaves nothing behind."""
    folder = folder.absolute()
    with watched(folder.parent), temporary(beside=folder) as partial:
        fill(partial)
        partial.chmod(0o755)
        partial.rename(folder)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder's files."""
    for path in sorted(source.rglob("*")):
        if path.is_dir():
            continue
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if stat.S_ISREG(path.lstat().st_mode):
            _sync_file(path)
    _sync_file(folder)


def _sync_file(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
