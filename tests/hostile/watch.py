"""What is done out of the ordinary while a hostile file is taken, in this process and in those that it starts.

An audit hook stays in a forked process; it writes what it sees to a file, where the parent finds it. A process of
`sdhub.core.isolated.run_isolated` starts as this module says: the hook first, then what it was started for.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

from sdhub.core import isolated
from sdhub.evidence.memory import peak_mib

ROOT = Path(__file__).resolve().parent.parent.parent
SECRET = "secret.txt"  # beside the cases: nothing may read it
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
REPORTED = (
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "os.startfile"),
    *("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "webbrowser.open", "urllib.Request"),
    *("pickle.find_class", "os.rename", "os.chmod", "shutil.rmtree", "ctypes.dlopen"),
)


def peak() -> float:
    """MiB of this process and of the largest that it started, at most, so far."""
    return (peak_mib() or 0) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


class Watch:
    """The audit hook: while it is `on` it notes what is done out of the ordinary, with the process that does it.

    Ordinary is what a clean run does: what is imported when the hook starts, and what `learn` was told.
    """

    def __init__(self, root: Path) -> None:
        self.on = False
        self.root = root.resolve()
        self.cases = str(self.root / "cases")
        self.free = (str(self.root / "tmp"), str(self.root / "out"), "/dev/null")
        self.modules: set[str] = set()
        self.ordinary: set[str] = set()
        self._log = self.root / "events"
        self._file = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._read = 0
        self._process = os.getpid()
        self._fresh = False
        self._said: set[str] = set()

    def start(self) -> None:
        """Watch this process, and every one that it starts from now on."""
        self.modules = {name.partition(".")[0] for name in sys.modules}
        isolated.COMMAND = [sys.executable, "-I", "-c", _BEGIN.format(str(ROOT), str(self.root))]
        sys.addaudithook(self.hook)

    def begin(self) -> None:
        """Watch a fresh process from its beginning."""
        self._fresh, self.on = True, True
        sys.addaudithook(self.hook)

    def learn(self) -> None:
        """Take what was seen by now for ordinary."""
        self.ordinary |= {each.partition(": ")[2] for each in self._seen()}

    def events(self) -> list[str]:
        """What was seen since it was last asked for, `process: event`; process is "own", "forked" or "fresh"."""
        return [each for each in self._seen() if each.partition(": ")[2] not in self.ordinary]

    def _seen(self) -> list[str]:
        with self._log.open(encoding="utf-8") as stream:
            stream.seek(self._read)
            lines = stream.read().splitlines()
            self._read = stream.tell()
        return list(dict.fromkeys(lines))

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or (said := self._event(event, arguments)) is None or said in self._said:
            return
        if self._fresh:  # it imports thousands of modules, each of them once
            self._said.add(said)
        process = "fresh" if self._fresh else "own" if os.getpid() == self._process else "forked"
        os.write(self._file, f"{process}: {said[:200]!a}\n".encode())

    def _event(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "import" and (name := str(arguments[0]).partition(".")[0]) not in self.modules:
            return f"import {name}"
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path, mode, flags = os.fsdecode(arguments[0]), str(arguments[1] or ""), arguments[2] or 0
            writes = bool(set(mode) & set("wax+")) or bool(flags & WRITING)
            if path.endswith((SECRET, "passwd")) or (writes and not path.startswith(self.free)):
                return f"open {path} {mode} {flags}"
        if event in ("compile", "exec"):
            code = arguments[0] if event == "exec" else arguments[1]
            name = str(getattr(code, "co_filename", code))
            return f"{event} {name}" if name.startswith(self.cases) else None
        if event in REPORTED and not any(free in str(arguments) for free in self.free):
            return f"{event} {arguments}"
        return None


_BEGIN = """
import sys
from pathlib import Path
sys.path.insert(0, {!r})
from tests.hostile.watch import Watch
Watch(Path({!r})).begin()
from sdhub.core.isolated import main
main()
"""
