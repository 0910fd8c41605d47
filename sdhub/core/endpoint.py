"""Which Hub: huggingface.co, another server, or the embedded one, started for as long as it is needed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sdhub.core.errors import HubError, UsageError
from sdhub.core.nextsteps import LOCAL_PORT
from sdhub.core.scratch import temporary
from sdhub.core.work import home

PUBLIC = "https://huggingface.co"
LOCAL_TOKEN = "local"  # noqa: S105 — the embedded Hub takes any token for the user `local`
START_SECONDS = 120
END_SECONDS = 5
TAKEN = "cannot listen on"  # what the Hub says of a port that another one has


@dataclass(frozen=True)
class Endpoint:
    """A Hub's address, and the token to use there (never shown)."""

    url: str
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raises UsageError for an address that is none, or holds a password: addresses are shown and kept."""
        vet_address(self.url)

    @property
    def name(self) -> str:
        """What it is known by: the embedded Hub of this home may have another address each time."""
        return "local" if self.token == LOCAL_TOKEN else self.url


def endpoint(hub: str | None) -> Endpoint:
    """A Hub by address; None is `HF_ENDPOINT` or huggingface.co. The token is huggingface_hub's own."""
    from huggingface_hub import get_token

    url = (hub or os.environ.get("HF_ENDPOINT") or PUBLIC).rstrip("/")
    vet_address(url)
    return Endpoint(url, get_token())


def vet_address(url: str) -> None:
    """Raises UsageError unless this is http(s)://HOST[:PORT][/PATH] and no more; no secret in it is repeated."""
    secret = "@" in url or "?" in url or "#" in url
    try:
        parts = urlsplit(url)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        sound = False
    if secret:
        raise UsageError(
            f"the address {shown_address(url)} of a Hub holds more than a host",
            hint="no user, password or query goes into it: give the token in HF_TOKEN, or run: hf auth login",
        )
    if not sound or any(char.isspace() or not char.isprintable() for char in url):
        raise UsageError(f"{url[:100]} is no address of a Hub", hint="give http(s)://HOST, or local")


def shown_address(url: str) -> str:
    """An address without what may be secret in it: user, password, query and fragment."""
    plain = url.partition("?")[0].partition("#")[0]
    scheme, slashes, rest = plain.rpartition("://")
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}"[:100] if "@" not in scheme else "***"


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
    with embedded(root, LOCAL_PORT) as url:
        yield Endpoint(url, LOCAL_TOKEN)


@contextmanager
def embedded(root: Path, port: int = 0) -> Iterator[str]:
    """Run the embedded Hub in a process of its own; yields its address. Raises HubError.

    Where another program has the port, or takes it first, it runs on a free one: several may serve one root.
    """
    with temporary("hub") as folder:
        process, url = _start(root, port if port and _free(port) else 0, folder)
        try:
            yield url
        finally:
            _end(process)


def _start(root: Path, port: int, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The Hub's process, and its address, which it tells in `folder`."""
    ready, said = folder / f"ready-{port}.json", folder / f"said-{port}"
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
        return process, _await(process, ready, said)
    except BaseException as error:
        _end(process)
        if port and isinstance(error, HubError) and TAKEN in str(error):
            return _start(root, 0, folder)
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
