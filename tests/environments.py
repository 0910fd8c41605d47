"""Virtual environments for tests that use other versions than the one the tests run in.

Made once under `<repository>/.venvs/`, by `python -m venv` and pip, and reused; a build that was cut off is begun
anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

CACHE = Path(__file__).resolve().parent.parent / ".venvs"
_DONE = ".complete"


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The Python of an environment with these requirements (as pip takes them).

    Raises RuntimeError, with the end of pip's output, when they cannot be installed.
    """
    key = json.dumps([name, sorted(requirements), sys.version_info[:2]])
    folder = CACHE / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    CACHE.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / _DONE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(folder)])
            _run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements])
            (folder / _DONE).write_text(json.dumps(list(requirements)))
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} … failed: {done.stdout[-1500:]}")
