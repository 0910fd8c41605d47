"""Running a function in a process of its own: its memory is its own, and so are the counters of its libraries.

OpenVINO numbers its nodes per process, so only a fresh process gives the same bytes each time. The child
(`python -m sdhub.core.isolated`) takes one pickled call from its parent on standard input, tells of its progress
in JSON lines on standard output, and ends when its parent does. On Linux children are copies of one process that
has imported torch, diffusers and transformers and done nothing else (a fork server), which saves each six seconds.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TextIO

from sdhub.core import errors
from sdhub.core.disk import full_disk
from sdhub.core.errors import SdhubError
from sdhub.core.forking import Forked, fork_server, serve
from sdhub.core.progress import Progress, Task
from sdhub.core.scratch import temporary

# -I: a stranger's folder may be the current one, and is not searched for modules.
COMMAND = [sys.executable, "-I", "-m", "sdhub.core.isolated"]
LENGTH = struct.Struct("<Q")
PRELOADED = ("torch", "diffusers.pipelines.stable_diffusion", "transformers.models.clip.modeling_clip")
# Of torch on Linux: tensors of 3 MiB and more go back to the system at once, where glibc would keep them (a fifth
# of the memory of quantizing SDXL; from 1 MiB on it would take half as long again), and are asked for in large
# pages (a fifth of the time of a large layer).
MEMORY = {"MALLOC_MMAP_THRESHOLD_": "3145728", "THP_MEM_ALLOC_ENABLE": "1"}
# What asks whether there is a GPU must not begin to use it: a copy of a process that did cannot.
FORKED = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def run_isolated(function: Callable[..., None], *arguments: Any, progress: Progress) -> None:
    """Run `function(*arguments, progress)` in a fresh process; it is named by its module and must be importable.

    Raises the SdhubError that it raises, and SdhubError with the last line it said where it dies otherwise. What
    it and its libraries leave in the folder for passing files goes when it ends, however it does.
    """
    with temporary("work") as place:
        _run_isolated(function, arguments, progress, place)


def _run_isolated(
    function: Callable[..., None], arguments: tuple[Any, ...], progress: Progress, place: Path
) -> None:
    call = pickle.dumps((function.__module__, function.__qualname__, arguments))
    variables = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(place))
    said: list[str] = []
    failure: SdhubError | None = None
    with _started(variables) as process:
        listener = threading.Thread(target=_listen, args=(process, said), daemon=True)
        listener.start()
        try:
            _send(process, call)
            failure = _follow(process, progress)
        finally:
            if process.stdin:
                process.stdin.close()
            code = process.wait()
            listener.join()
    if failure is not None:
        raise failure
    if code != 0:
        raise SdhubError(f"{function.__qualname__} died: {_last(said, code)}")


def _started(variables: dict[str, str]) -> subprocess.Popen[bytes] | Forked:
    """A child that waits for its call, with these environment variables besides this process's own."""
    own = {**MEMORY, **FORKED, **os.environ}
    if sys.platform == "linux":
        with suppress(OSError):  # it was killed just now, or the environment is larger than a message
            return fork_server(COMMAND, own).fork({**own, **variables})
    pipe = subprocess.PIPE
    return subprocess.Popen(  # noqa: S603 — our own program
        COMMAND, stdin=pipe, stdout=pipe, stderr=pipe, env={**own, **variables}
    )


class ExhaustedError(Exception):
    """A bounded call took more memory or time than it may."""


def bounded(function: Callable[..., Any], *arguments: Any, seconds: int, mib: int) -> Any:
    """What `function(*arguments)` returns (a JSON document), within `seconds`, and `mib` MiB of memory more.

    On Linux in a copy of this process, with all that it has imported; elsewhere in this process, without bounds.
    The function must compute nothing in parallel. Raises the SdhubError that it raises, and ExhaustedError.
    """
    if sys.platform != "linux":
        return function(*arguments)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, none of whose locks the function takes
        child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(writer, function, arguments, seconds, mib)
    os.close(writer)
    try:
        said = _heard(reader, seconds)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not said:
        raise ExhaustedError(f"it takes more than {mib} MiB or {seconds} s")
    kind, *details = json.loads(said)
    if kind == "error":
        raise _error(*details)
    return details[0]


def _answer(
    writer: int, function: Callable[..., Any], arguments: Sequence[Any], seconds: int, mib: int
) -> NoReturn:
    """The copy's side: it ends here, whatever happens."""
    gc.disable()  # to look for garbage would be to copy every object of the parent
    code = 1
    try:
        import resource

        own = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        for limit, most in ((resource.RLIMIT_DATA, own + mib * 2**20), (resource.RLIMIT_CPU, seconds)):
            hard = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        try:
            answer = json.dumps(["done", function(*arguments)])
        except SdhubError as error:
            answer = json.dumps(["error", type(error).__name__, error.message, error.hint])
        with os.fdopen(writer, "w") as out:
            out.write(answer)
        code = 0
    finally:
        os._exit(code)


def _heard(reader: int, seconds: int) -> bytes:
    """All that comes until the end, or nothing where it takes too long."""
    said, end = b"", time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if not select.select([reader], [], [], left)[0]:
            break
        block = os.read(reader, 2**16)
        if not block:
            return said
        said += block
    return b""


def _send(process: subprocess.Popen[bytes] | Forked, call: bytes) -> None:
    if process.stdin:
        process.stdin.write(LENGTH.pack(len(call)) + call)
        process.stdin.flush()


def _listen(process: subprocess.Popen[bytes] | Forked, said: list[str]) -> None:
    for line in process.stderr or ():
        said.append(line.decode(errors="replace").strip())
        del said[:-50]


def _last(said: list[str], code: int) -> str:
    if code == -9:
        return "it was killed, perhaps for want of memory"
    return next((line[:300] for line in reversed(said) if line), f"exit code {code}")


def _follow(process: subprocess.Popen[bytes] | Forked, progress: Progress) -> SdhubError | None:
    """Draw the child's progress until it ends; its failure, if it told of one."""
    tasks: dict[int, tuple[Task, ExitStack]] = {}
    failure = None
    try:
        for line in process.stdout or ():
            event = _event(line)
            if event[0] == "note":
                progress.note(event[1])
            elif event[0] == "begin":
                stack = ExitStack()
                tasks[event[1]] = (stack.enter_context(progress.task(*event[2:])), stack)
            elif event[0] == "advance":
                _task(tasks, event[1]).advance(event[2])
            elif event[0] == "total":
                _task(tasks, event[1]).total(event[2])
            elif event[0] == "end" and event[1] in tasks:
                tasks.pop(event[1])[1].close()
            elif event[0] == "error":
                failure = _error(*event[1:])
    finally:
        for _, stack in reversed(tasks.values()):
            stack.close()
    return failure


def _task(tasks: dict[int, tuple[Task, ExitStack]], number: int) -> Task:
    """The task, or a silent one where a library's unfinished line swallowed its beginning."""
    return tasks[number][0] if number in tasks else Task()


def _event(line: bytes) -> list[Any]:
    """An event, or nothing for a line that a library printed."""
    try:
        event = json.loads(line)
    except ValueError:
        return [None]
    return event if isinstance(event, list) and event else [None]


def _error(kind: str, message: str, hint: str) -> SdhubError:
    error = SdhubError(message, hint=hint)
    error.__class__ = getattr(errors, kind, SdhubError)
    return error


class _Reporter(Progress):
    """The child's side: events on standard output."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._count = 0

    def tell(self, *event: Any) -> None:
        """One line."""
        self._out.write(json.dumps(event) + "\n")
        self._out.flush()

    def note(self, text: str) -> None:
        self.tell("note", text)

    @contextmanager
    def task(self, label: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        self._count += 1
        number = self._count
        self.tell("begin", number, label, total, unit)
        try:
            yield _ToldTask(self, number)
        finally:
            self.tell("end", number)


class _ToldTask(Task):
    def __init__(self, reporter: _Reporter, number: int) -> None:
        self._reporter = reporter
        self._number = number

    def advance(self, amount: float = 1.0) -> None:
        self._reporter.tell("advance", self._number, amount)

    def total(self, amount: float) -> None:
        self._reporter.tell("total", self._number, amount)


def main() -> None:
    """The child, or the fork server of children. Of an interrupt it learns through its parent, which ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if len(sys.argv) == 1:
        sys.exit(_called())
    serve(int(sys.argv[1]), PRELOADED)  # returns in each copy
    code = 1
    try:
        code = _called()
    except BaseException:  # noqa: BLE001 — told as the interpreter does, whose own end would search all that is frozen
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _called() -> int:
    """Do what the parent asks for; the exit code."""
    reporter = _Reporter(sys.stdout)
    stdin = sys.stdin.buffer
    (length,) = LENGTH.unpack(stdin.read(LENGTH.size))
    module, name, arguments = pickle.loads(stdin.read(length))  # noqa: S301 — from our own parent
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        getattr(import_module(module), name)(*arguments, reporter)
    except SdhubError as error:
        reporter.tell("error", type(error).__name__, error.message, error.hint)
        return error.exit_code
    except Exception as error:
        full = full_disk(error, [each for each in arguments if isinstance(each, Path)])
        if full is None:
            raise
        reporter.tell("error", type(full).__name__, full.message, full.hint)
        return full.exit_code
    return 0


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
