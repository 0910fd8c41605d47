"""Running the Hub as a server."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from sdhub.hub.errors import StartError

if TYPE_CHECKING:
    import uvicorn

    from sdhub.hub.hub import EmbeddedHub
    from sdhub.hub.running import Python

PORT = 8420
BACKLOG = 2048
GRACE_SECONDS = 3

logger = logging.getLogger("sdhub.hub")


def serve(
    root: Path,
    host: str = "127.0.0.1",
    port: int = PORT,
    *,
    users: Path | None = None,
    ready_file: Path | None = None,
    exit_with_parent: bool = False,
    run_spaces: Python | None = None,
    run_jobs: bool = False,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the Hub in `root` until SIGTERM or SIGINT; several servers may share one root.

    `port` 0 picks a free one. `users` is a users file (see `users.py`); without it any token may write.
    When connections are accepted, `ready_file` is written, as JSON `{"url", "pid"}`, and `on_ready` called with
    the address. With `exit_with_parent` the server ends when its standard input does. `run_spaces` runs the apps
    of Spaces (see `running.py`), `run_jobs` jobs (see `jobs.py`): the code of all who may write.

    Raises StartError: the port is taken, the root cannot be written, the users file is broken, Spaces or jobs
    would be run for anyone on other machines.
    """
    import uvicorn

    from sdhub.hub.app import make_app
    from sdhub.hub.hub import open_hub
    from sdhub.hub.users import load_users

    accounts = load_users(users)
    loopback = is_loopback(host)
    listener = listen(host, port)
    with listener:
        try:
            hub = open_hub(root.resolve(), accounts, loopback=loopback, lasting=not exit_with_parent)
        except OSError as error:
            raise StartError(f"the Hub cannot keep its data in {root}: {error.strerror}") from None
        if not loopback:
            logger.warning("the Hub is open to other machines on %s%s", host, _warning(accounts.open))
        if (run_spaces or run_jobs) and not loopback and accounts.open:
            raise StartError(
                "Spaces and jobs run the code of all who may write: give --users, or listen on this machine only"
            )
        url = address(host, listener)
        with _running_spaces(hub, run_spaces, url) as hub, _running_jobs(hub, run_jobs, url) as hub:
            config = uvicorn.Config(
                make_app(hub),
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
            if exit_with_parent:
                threading.Thread(target=_end_with_input, daemon=True).start()
            if ready_file is not None:
                _announce(ready_file, url)
            if on_ready is not None:
                on_ready(url)
            server = uvicorn.Server(config)
            with _quiet_end(server):
                server.run(sockets=[listener])


@contextmanager
def _running_spaces(hub: EmbeddedHub, python: Python | None, url: str) -> Iterator[EmbeddedHub]:
    """The Hub with a runner for its Spaces, where they are to run."""
    if python is None:
        yield hub
        return
    from sdhub.hub.running import Runner

    runner = Runner(hub, python, url)
    try:
        yield replace(hub, runner=runner)
    finally:
        runner.close()


@contextmanager
def _running_jobs(hub: EmbeddedHub, wanted: bool, url: str) -> Iterator[EmbeddedHub]:
    """The Hub with a runner for jobs, where they are to run."""
    if not wanted:
        yield hub
        return
    from sdhub.hub.jobs import JobRunner

    runner = JobRunner(hub, url)
    try:
        yield replace(hub, jobs=runner)
    finally:
        runner.close()


def _warning(is_open: bool) -> str:
    return ", and any token may write: give --users to change that" if is_open else ""


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises StartError."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(where)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener


def address(host: str, listener: socket.socket) -> str:
    """The URL to reach a listening socket at, from this machine."""
    port = listener.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{name}:{port}"


def _announce(path: Path, url: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps({"url": url, "pid": os.getpid()}), encoding="utf-8")
    draft.replace(path)


@contextmanager
def _quiet_end(server: uvicorn.Server) -> Iterator[None]:
    """End the server on a signal that comes before uvicorn listens for them.

    uvicorn raises the signal that ended it once more when it is done: that one does nothing more.
    """

    def end(*_: object) -> None:
        server.should_exit = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_input() -> None:
    # the raw descriptor: a thread in a buffered read would abort the interpreter's end
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
