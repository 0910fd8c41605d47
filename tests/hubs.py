"""The embedded Hub as a server process, for tests that need a Hub."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 60


class HubProcess:
    """A running server: its address, and its process to end in whatever way."""

    def __init__(self, root: Path, *arguments: str) -> None:
        ready = root.with_name(f"{root.name}.{time.monotonic_ns()}.ready.json")
        command = [sys.executable, "-m", "sdhub.hub", "--root", str(root), "--port", "0", "--quiet"]
        self.process = subprocess.Popen(
            [*command, "--ready-file", str(ready), "--exit-with-parent", *arguments],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).resolve().parent.parent,
        )
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("the embedded Hub did not start")
            time.sleep(0.02)
        self.url: str = json.loads(ready.read_text())["url"]
        ready.unlink()

    def stop(self) -> None:
        """End it as its user would."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.terminate()
        self.process.wait(timeout=30)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self.process.kill()
        self.process.wait(timeout=30)
        if self.process.stdin is not None:
            self.process.stdin.close()


@contextmanager
def running_hub(root: Path, *arguments: str) -> Iterator[str]:
    """An embedded Hub on `root` for the block; yields its address. More arguments go to `python -m sdhub.hub`."""
    hub = HubProcess(root, *arguments)
    try:
        yield hub.url
    finally:
        hub.stop()
