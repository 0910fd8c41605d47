"""Runs a Space's app or a job's command, and ends it when its Hub ends, however that does.

`python supervisor.py APP` in the app's folder, or `python supervisor.py -- COMMAND…`, which leads a process group
of its own. By path and with the standard library alone: the environment of a Space need not have sdhub. The Hub
holds the other end of the standard input.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path


def _at_end_of_input(act: Callable[[], None]) -> None:
    def wait() -> None:
        while os.read(0, 4096):
            pass
        act()

    threading.Thread(target=wait, daemon=True).start()


def _run(command: list[str]) -> int:
    """The exit code of a command, as shells give it; the signals that end its group are the command's to obey."""
    _at_end_of_input(lambda: os.killpg(0, signal.SIGKILL))
    signal.signal(signal.SIGTERM, lambda *_: None)  # a handler, which the command does not inherit
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 — what jobs are for
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    if sys.argv[1] == "--":
        sys.exit(_run(sys.argv[2:]))
    app = sys.argv[1]
    _at_end_of_input(lambda: os._exit(1))
    sys.argv = [app]
    sys.path[0] = str(Path.cwd())
    runpy.run_path(app, run_name="__main__")
