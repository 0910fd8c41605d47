"""Runs a Space's app, and ends it when its Hub ends: `python supervisor.py APP` in the app's folder.

By path and with the standard library alone: the environment of a Space need not have sdhub. The Hub holds the
other end of the standard input.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from pathlib import Path


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    app = sys.argv[1]
    threading.Thread(target=_end_with_input, daemon=True).start()
    sys.argv = [app]
    sys.path[0] = str(Path.cwd())
    runpy.run_path(app, run_name="__main__")
