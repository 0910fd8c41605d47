"""A fork server: a process that has imported what all its copies need, and is copied for each of them.

Unlike multiprocessing's it runs with `-I`, so that nothing in the current folder is imported, and each copy has
standard streams of its own. Linux only.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import selectors
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import IO

MESSAGE = 2**18  # bytes of a request, which is the environment of the copy
_servers: dict[tuple[int, tuple[str, ...]], ForkServer] = {}
_lock = threading.Lock()


class Forked:
    """A copy of the server: what `subprocess.Popen` is of a program, as far as it is used here."""

    def __init__(self, stdin: int, stdout: int, stderr: int, status: int) -> None:
        self.stdin: IO[bytes] = os.fdopen(stdin, "wb")
        self.stdout: IO[bytes] = os.fdopen(stdout, "rb")
        self.stderr: IO[bytes] = os.fdopen(stderr, "rb")
        self._status: IO[bytes] = os.fdopen(status, "rb")

    def wait(self) -> int:
        """Its exit code, negative for a signal; 1 where the server was killed and cannot tell."""
        return int(self._status.readline() or b"1")

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self.stdin, self.stdout, self.stderr, self._status):
            with suppress(OSError):
                each.close()


class ForkServer:
    """The parent's side. The server ends when the parent does."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 — our own program
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(variables),
            )
        atexit.register(self._end, os.getpid())

    @property
    def alive(self) -> bool:
        """Whether it can be asked for copies."""
        return self._process.poll() is None

    def fork(self, variables: Mapping[str, str]) -> Forked:
        """A copy with this environment. Raises OSError where the server cannot be asked."""
        pipes = [os.pipe() for _ in range(4)]
        (theirs, stdin), *others = pipes
        given = [theirs, *(write for _, write in others)]
        try:
            socket.send_fds(self._socket, [json.dumps(dict(variables)).encode()], given)
        except OSError:
            for each in (stdin, *(read for read, _ in others)):
                os.close(each)
            raise
        finally:
            for each in given:
                os.close(each)
        return Forked(stdin, *(read for read, _ in others))

    def _end(self, owner: int) -> None:
        if os.getpid() == owner:
            self._socket.close()
            self._process.wait()


def fork_server(command: Sequence[str], variables: Mapping[str, str]) -> ForkServer:
    """This process's server of that command, begun in the environment `variables` where there is none."""
    key = (os.getpid(), tuple(command))
    with _lock:
        if key not in _servers or not _servers[key].alive:
            _servers[key] = ForkServer(command, variables)
        return _servers[key]


def serve(descriptor: int, modules: Sequence[str]) -> None:
    """The server's side: never returns there, and returns once in each copy.

    `modules` are imported before the first copy is made, where they are installed.
    """
    requests = socket.socket(fileno=descriptor)
    for name in modules:
        with suppress(Exception):  # each copy that needs it will say what is wrong with it
            import_module(name)
    gc.freeze()  # copies neither copy these pages nor search them for garbage
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    selector.unregister(key.fileobj)
                    _report(int(key.fd), *key.data)
                    continue
                message, given, _, _ = socket.recv_fds(requests, MESSAGE, 4)
                if not message:  # the parent has ended
                    os._exit(0)
                child = os.fork()
                if child == 0:
                    for other in selector.get_map().values():
                        if other.data is not None:
                            os.close(other.data[1])  # of copies made before
                    requests.close()
                    _become(json.loads(message), given)
                    return
                for each in given[:3]:
                    os.close(each)
                selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, given[3]))


def _report(descriptor: int, child: int, status: int) -> None:
    """Tell how a copy ended."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):  # nobody waits for it any more
        os.write(status, f"{code}\n".encode())
    os.close(status)
    os.close(descriptor)


def _become(variables: Mapping[str, str], given: Sequence[int]) -> None:
    """Take over the streams and the environment that were sent along."""
    for number, each in enumerate(given[:3]):
        os.dup2(each, number)
    for each in given:
        os.close(each)
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None
