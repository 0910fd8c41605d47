"""What is done out of the ordinary while a hostile file is taken."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

SECRET = "secret.txt"  # beside the cases: nothing may read it
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
REPORTED = (
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "os.startfile"),
    *("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "webbrowser.open", "urllib.Request"),
    *("pickle.find_class", "os.rename", "os.chmod", "shutil.rmtree", "ctypes.dlopen"),
)


class Watch:
    """The audit hook: `events` of what is done out of the ordinary while it is on.

    `allowed` are events that sdhub itself causes.
    """

    def __init__(self, root: Path, *, allowed: Collection[str] = ()) -> None:
        self.on = False
        self.allowed = allowed
        self.events: list[str] = []
        self.root = root.resolve()
        self.cases, self.free = (
            str(self.root / "cases"),
            (str(self.root / "tmp"), str(self.root / "out"), "/dev/null"),
        )
        self.modules: set[str] = set()

    def start(self) -> None:
        """Take what is imported by now for ordinary."""
        self.modules = {name.partition(".")[0] for name in sys.modules}
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and (said := self._said(event, arguments)):
            self.events.append(said[:200])

    def _said(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "import" and str(arguments[0]).partition(".")[0] not in self.modules:
            return f"import {arguments[0]}"
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path, mode, flags = os.fsdecode(arguments[0]), str(arguments[1] or ""), arguments[2] or 0
            writes = bool(set(mode) & set("wax+")) or bool(flags & WRITING)
            if path.endswith((SECRET, "passwd")) or (writes and not path.startswith(self.free)):
                return f"open {path} {mode} {flags}"
        if event in ("compile", "exec"):
            code = arguments[0] if event == "exec" else arguments[1]
            name = str(getattr(code, "co_filename", code))
            return f"{event} {name}" if name.startswith(self.cases) else None
        if event in self.allowed:
            return None
        if event in REPORTED and not any(free in str(arguments) for free in self.free):
            return f"{event} {arguments}"
        return None
