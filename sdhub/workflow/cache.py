"""What sdhub keeps on this machine, and clearing it: results of stages, least recently used first.

Nothing that a running process uses is touched: results in use are locked by their users (`sdhub.core.work`),
passing folders by their owners (`sdhub.core.scratch`). On Windows an open file keeps its folder from being
renamed, which has to do. The embedded Hub's data and a watcher's state are no cache, and stay.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from sdhub.core import scratch
from sdhub.core.errors import UsageError
from sdhub.core.work import home, key_file

if sys.platform != "win32":
    import fcntl

Kind = Literal["result", "unfinished", "temporary"]
PARTIAL, GOING = ".partial", ".going"
_SPAN = re.compile(r"(\d{1,6})\s*([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class Held:
    """Something on disk: `stage` names the step of publishing (or what a passing folder is), `used` is the time of
    its last use in seconds since 1970, `busy` whether a running process has it.
    """

    kind: Kind
    stage: str
    path: Path
    bytes: int
    used: float
    busy: bool

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        used = datetime.fromtimestamp(self.used, timezone.utc).isoformat(timespec="seconds")
        return {
            "kind": self.kind,
            "stage": self.stage,
            "path": str(self.path),
            "bytes": self.bytes,
            "last_used": used,
            "in_use": self.busy,
        }


def holdings(root: Path | None = None) -> list[Held]:
    """All that could be cleared, least recently used first; `root` is the work folder (default: in `home`)."""
    found = [*_stages(root or home() / "work"), *_temporary()]
    return sorted(found, key=lambda each: (each.used, str(each.path)))


def chosen(
    held: Sequence[Held],
    *,
    older_than: float | None = None,
    max_bytes: int | None = None,
    everything: bool = False,
) -> list[Held]:
    """What goes: all; what was not used for `older_than` seconds; and then, least recently used first, as much as
    leaves `max_bytes`. What dead processes left goes in any case, what is in use in none.
    """
    now = time.time()

    def old(each: Held) -> bool:
        return everything or each.kind != "result" or (older_than is not None and now - each.used >= older_than)

    free = [each for each in held if not each.busy]
    gone = [each for each in free if old(each)]
    if max_bytes is not None:
        left = sum(each.bytes for each in held) - sum(each.bytes for each in gone)
        for each in free:
            if left <= max_bytes:
                break
            if not old(each):
                gone.append(each)
                left -= each.bytes
    return gone


def clear(
    *,
    older_than: float | None = None,
    max_bytes: int | None = None,
    everything: bool = False,
    root: Path | None = None,
) -> list[Held]:
    """Clear what `chosen` names; returns what went. What a process took into use meanwhile stays."""
    found = chosen(holdings(root), older_than=older_than, max_bytes=max_bytes, everything=everything)
    return [each for each in found if _clear(each)]


def sweep(root: Path | None = None) -> list[Held]:
    """Clear what dead processes left: their passing folders, and stages that they had begun."""
    scratch.sweep()
    root = root or home() / "work"
    left = [_stage(path.parent.name, path) for end in (PARTIAL, GOING) for path in sorted(root.glob(f"*/*{end}"))]
    return [each for each in left if _clear(each)]


def parse_span(text: str) -> float:
    """Seconds: 90s, 45m, 12h, 30d, 4w. Raises UsageError."""
    found = _SPAN.fullmatch(text.strip().lower())
    if found is None:
        raise UsageError(f"{text[:40]!r} is no span of time", hint="such as 12h, 30d or 4w")
    return float(int(found[1]) * _SECONDS[found[2]])


def parse_bytes(text: str) -> int:
    """Bytes: 500MB and 20GB are powers of 1000, 20GiB of 1024. Raises UsageError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text[:40]!r} is no size", hint="such as 500MB or 20GB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWER[found[2].lower()])


def _stages(root: Path) -> Iterator[Held]:
    with suppress(FileNotFoundError, NotADirectoryError):
        for stage in sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink()):
            for path in sorted(each for each in stage.iterdir() if each.is_dir() and not each.is_symlink()):
                yield _stage(stage.name, path)


def _stage(stage: str, path: Path) -> Held:
    whole = path.suffix not in {PARTIAL, GOING}
    stamp = key_file(path) if whole and key_file(path).exists() else path
    with _unused(path) as free:
        busy = not free
    return Held("result" if whole else "unfinished", stage, path, _size(path), _time(stamp), busy)


def _temporary() -> Iterator[Held]:
    for path in scratch.passing():
        name = path.name.removeprefix(scratch.PREFIX).rpartition("-")[0]
        yield Held("temporary", name or "work", path, _size(path), _time(path), scratch.in_use(path))


@contextmanager
def _unused(path: Path) -> Iterator[bool]:
    """Whether nobody makes or uses a stage's folder; for the block, nobody begins to."""
    from filelock import FileLock, Timeout

    done = path.with_suffix("") if path.suffix in {PARTIAL, GOING} else path
    lock = FileLock(f"{done}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    handle = None
    try:
        if sys.platform != "win32" and path == done:
            with suppress(FileNotFoundError):
                handle = os.open(key_file(done), os.O_RDONLY)
        if handle is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
        yield True
    finally:
        if handle is not None:
            os.close(handle)
        lock.release()


def _clear(held: Held) -> bool:
    if held.kind == "temporary":
        return scratch.remove(held.path)
    with _unused(held.path) as free:
        if not free:
            return False
        going = held.path
        if held.kind == "result":
            going = held.path.with_name(f"{held.path.name}{GOING}")
            shutil.rmtree(going, ignore_errors=True)
            try:
                held.path.rename(going)
            except OSError:  # it is gone, or (Windows) open
                return False
            key_file(held.path).unlink(missing_ok=True)
        shutil.rmtree(going, ignore_errors=True)
    return not held.path.exists()


def _size(folder: Path) -> int:
    """Bytes of a folder's files, links not followed."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found = Path(path, name).lstat()
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _time(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0
