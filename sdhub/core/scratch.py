"""All passing folders that sdhub makes, so that none outlives its maker.

Each is `sdhub-…` in the system's folder for such (`TMPDIR`), with the file `owner` (host, process, its start) and
the folder `here` for the work. The owner holds `owner` locked (flock) for as long as it lives: a folder whose lock
can be had was left by a process that is dead, and goes at the next start. Nothing of another user is touched, and
what another host made only when it is a week old: there are file systems that do not tell hosts of each other's
locks. Windows has no such locks: nothing is known to be dead there, and nothing is swept.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl

PREFIX = "sdhub-"
OWNER, HERE = "owner", "here"
FOREIGN_SECONDS = 7 * 86_400.0
MAX_OWNER = 4096


@contextmanager
def temporary(name: str = "", *, beside: Path | None = None) -> Iterator[Path]:
    """An empty folder that goes with the block, or with the next start where this process dies in it.

    `name` tells people what it is for. `beside` has it made beside a path, on the same file system, so that what
    is whole can be renamed to there.
    """
    parent, prefix = _place(name, beside)
    sweep(parent, prefix if beside else PREFIX)
    whole = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    owner = None
    try:
        owner = _own(whole)
        here = whole / HERE
        here.mkdir()
        yield here
    finally:
        shutil.rmtree(whole, ignore_errors=True)  # what cannot go now is swept later
        if owner is not None:
            os.close(owner)


def sweep(parent: Path | None = None, prefix: str = PREFIX) -> int:
    """Remove the folders that dead processes left in `parent` (default: the system's); returns how many."""
    return sum(remove(each) for each in leftovers(parent, prefix))


def leftovers(parent: Path | None = None, prefix: str = PREFIX) -> list[Path]:
    """Folders of this user, in `parent`, that dead processes left."""
    return [each for each in passing(parent, prefix) if not in_use(each)]


def passing(parent: Path | None = None, prefix: str = PREFIX) -> list[Path]:
    """All such folders of this user, in use or not."""
    found = []
    with suppress(OSError), os.scandir(parent or tempfile.gettempdir()) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.name.startswith(prefix) and _ours(entry.stat(follow_symlinks=False), stat.S_ISDIR):
                    found += [Path(entry.path)] if _ours((Path(entry.path) / OWNER).lstat(), stat.S_ISREG) else []
    return sorted(found)


def in_use(folder: Path) -> bool:
    """Whether the owner of such a folder may still be alive."""
    claim = _claim(folder)
    if claim is None:
        return True
    os.close(claim)
    return False


def _place(name: str, beside: Path | None) -> tuple[Path, str]:
    if beside is None:
        return Path(tempfile.gettempdir()), f"{PREFIX}{name}-" if name else PREFIX
    beside = beside.absolute()
    beside.parent.mkdir(parents=True, exist_ok=True)
    return beside.parent, f".{beside.name}.{PREFIX}"


def _ours(found: os.stat_result, kind: Any) -> bool:
    return kind(found.st_mode) and (not hasattr(os, "getuid") or found.st_uid == os.getuid())


def _own(folder: Path) -> int | None:
    """Write and lock `owner`. It gets its name when it is locked: nobody sees it free."""
    draft = folder / f".{OWNER}"
    handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    document = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    os.write(handle, json.dumps(document).encode())
    if sys.platform == "win32":
        os.close(handle)
        return None
    with suppress(OSError):  # a file system without locks: the process is looked for instead
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    draft.rename(folder / OWNER)
    return handle


def _claim(folder: Path) -> int | None:
    """The lock of a folder whose owner is dead, as an open descriptor; None where it may be alive."""
    if sys.platform == "win32":
        return None
    try:
        handle = os.open(folder / OWNER, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _dead(os.read(handle, MAX_OWNER), time.time() - os.fstat(handle).st_mtime):
            return handle
    except OSError:  # its owner holds it
        pass
    os.close(handle)
    return None


def _dead(owner: bytes, age: float) -> bool:
    """Whether the process that `owner` names is gone; `age` in seconds."""
    try:
        document = json.loads(owner)
        host, pid, started = document["host"], int(document["pid"]), document["started"]
    except (ValueError, TypeError, KeyError):
        return age > FOREIGN_SECONDS
    if host != socket.gethostname():
        return age > FOREIGN_SECONDS
    return not _exists(pid) if started is None else _started(pid) != started


def _started(pid: int) -> str | None:
    """When a process began, as its system counts (Linux: clock ticks since boot); None where that is not told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return text.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def remove(folder: Path) -> bool:
    """Remove such a folder, unless its owner may be alive; whether it went."""
    claim = _claim(folder)
    if claim is None:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    os.close(claim)
    return not folder.exists()
