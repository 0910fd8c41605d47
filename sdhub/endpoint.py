"""Which Hub: huggingface.co, another server, or the embedded one, started for as long as it is needed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sdhub.errors import HubError, UsageError
from sdhub.work import home

PUBLIC = "https://huggingface.co"
LOCAL_PORT = 8420
LOCAL_TOKEN = "local"  # noqa: S105 — the embedded Hub takes any token for the user `local`
START_SECONDS = 120
END_SECONDS = 5


@dataclass(frozen=True)
class Endpoint:
    """A Hub's address, and the token to use there (never shown)."""

    url: str
    token: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What it is known by: the embedded Hub of this home may have another address each time."""
        return "local" if self.token == LOCAL_TOKEN else self.url


def endpoint(hub: str | None) -> Endpoint:
    """A Hub by address; None is `HF_ENDPOINT` or huggingface.co. The token is huggingface_hub's own."""
    from huggingface_hub import get_token

    url = (hub or os.environ.get("HF_ENDPOINT") or PUBLIC).rstrip("/")
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
        raise UsageError(f"{url} is no address of a Hub", hint="give http(s)://HOST, or local")
    return Endpoint(url, get_token())


@contextmanager
def connect(hub: str | None) -> Iterator[Endpoint]:
    """The Hub to publish to. `local` is the embedded one: a running one is used, else one runs for the block."""
    if hub != "local":
        yield endpoint(hub)
        return
    root = home() / "hub"
    there = running()
    if there:
        yield Endpoint(there, LOCAL_TOKEN)
        return
    with embedded(root, LOCAL_PORT if _free(LOCAL_PORT) else 0) as url:
        yield Endpoint(url, LOCAL_TOKEN)


@contextmanager
def embedded(root: Path, port: int = 0) -> Iterator[str]:
    """Run the embedded Hub in a process of its own; yields its address. Raises HubError."""
    with tempfile.TemporaryDirectory() as folder:
        ready, said = Path(folder) / "ready.json", Path(folder) / "said"
        command = [sys.executable, "-I", "-m", "sdhub.hub", "--root", str(root), "--port", str(port), "--quiet"]
        with said.open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603 — our own program
                [*command, "--ready-file", str(ready), "--exit-with-parent"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # Ctrl-C ends those who use it first
            )
        try:
            yield _await(process, ready, said)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the Hub; a request to end that comes while it starts may be lost, and its store stands a kill."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin:
        process.stdin.close()


def _await(process: subprocess.Popen[bytes], ready: Path, said: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while not ready.exists():
        if process.poll() is not None:
            reason = " ".join(said.read_text(errors="replace").split())[-300:]
            raise HubError(f"the embedded Hub did not start: {reason}")
        if time.monotonic() > deadline:
            raise HubError(f"the embedded Hub did not start within {START_SECONDS} s")
        time.sleep(0.02)
    return str(json.loads(ready.read_text())["url"])


def _free(port: int) -> bool:
    """Whether nothing listens there: the Hub of another home may."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def running() -> str | None:
    """The address of an embedded Hub that serves this home on the usual port, if one does."""
    from http.client import HTTPException
    from urllib.request import ProxyHandler, build_opener

    url = f"http://127.0.0.1:{LOCAL_PORT}"
    try:
        with build_opener(ProxyHandler({})).open(f"{url}/api/embedded", timeout=2) as answer:
            found = json.load(answer)
    except (OSError, HTTPException, ValueError):
        return None
    lasting = isinstance(found, dict) and found.get("lasting") is True
    return url if lasting and found.get("root") == str((home() / "hub").resolve()) else None
