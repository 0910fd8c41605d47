"""Which Hub: huggingface.co, another server, or the embedded one, started for as long as it is needed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sdhub.core.errors import HubError
from sdhub.core.hub import LOCAL_TOKEN, PUBLIC, Hub
from sdhub.core.nextsteps import LOCAL_PORT
from sdhub.core.scratch import temporary
from sdhub.core.work import home

START_SECONDS = 120
END_SECONDS = 5
TAKEN = "cannot listen on"  # what the Hub says of a port that another one has


def endpoint(hub: str | None) -> Hub:
    """A Hub by address; None is `HF_ENDPOINT` or huggingface.co. The token is huggingface_hub's own."""
    from huggingface_hub import get_token

    return Hub(hub or os.environ.get("HF_ENDPOINT") or PUBLIC, get_token())


@contextmanager
def connect(hub: str | None, *, jobs: bool = False) -> Iterator[Hub]:
    """The Hub to publish to. `local` is the embedded one: a running one is used, else one runs for the block, with
    `jobs` where they are needed.
    """
    if hub != "local":
        yield endpoint(hub)
        return
    root = home() / "hub"
    there = running()
    if there:
        yield Hub(there, LOCAL_TOKEN)
        return
    with embedded(root, LOCAL_PORT, *(["--jobs"] if jobs else [])) as url:
        yield Hub(url, LOCAL_TOKEN)


@contextmanager
def embedded(root: Path, port: int = 0, *options: str) -> Iterator[str]:
    """Run the embedded Hub in a process of its own, with further `options`; yields its address. Raises HubError.

    Where another program has the port, or takes it first, it runs on a free one: several may serve one root.
    """
    with temporary("hub") as folder:
        process, url = _start(root, port if port and _free(port) else 0, folder, options)
        try:
            yield url
        finally:
            _end(process)


def _start(root: Path, port: int, folder: Path, options: Sequence[str]) -> tuple[subprocess.Popen[bytes], str]:
    """The Hub's process, and its address, which it tells in `folder`."""
    ready, said = folder / f"ready-{port}.json", folder / f"said-{port}"
    command = [sys.executable, "-I", "-m", "sdhub.hub", "--root", str(root), "--port", str(port), "--quiet"]
    with said.open("wb") as errors:
        process = subprocess.Popen(  # noqa: S603 — our own program
            [*command, "--ready-file", str(ready), "--exit-with-parent", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # Ctrl-C ends those who use it first
        )
    try:
        return process, _await(process, ready, said)
    except BaseException as error:
        _end(process)
        if port and isinstance(error, HubError) and TAKEN in str(error):
            return _start(root, 0, folder, options)
        raise


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
