"""Publishing for a visitor: `sdhub publish` in a process of its own, with the visitor's token and no other.

One at a time, in the order of their coming; each for a bounded time, after which its whole process group is ended.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from downloads import clear_downloads
from limits import Limits
from line import Line

from sdhub.core.hub import Hub
from sdhub.core.scratch import temporary
from sdhub.workflow import cache

KEPT = ("PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "SDHUB_HOME", "HOME")
COMMAND = [sys.executable, "-I", "-m", "sdhub"]
LINES = 200
LOOK_SECONDS = 2.0
END_SECONDS = 5.0

logger = logging.getLogger("sdhub.publisher")


@dataclass(frozen=True)
class Told:
    """A line about what is going on, or, at the end, the result: the document, or the error in one line.

    `code` is the exit code of `sdhub`.
    """

    line: str = ""
    result: dict[str, Any] | None = None
    error: str = ""
    ended: bool = False
    code: int = 1


LINE = Line("publication")  # memory is short: visitors and the webhook share it


def arguments(
    source: str, variants: Sequence[str], namespace: str, *, create_pr: bool, private: bool
) -> list[str]:
    """Of `sdhub`. Every value was chosen by a visitor: none of them can be an option."""
    words = ["publish", "--json", "--yes", f"--to={namespace}", *(f"--variant={name}" for name in variants)]
    words += ["--create-pr"] if create_pr else []
    words += ["--private"] if private else []
    return [*words, "--", source]


def make(words: Sequence[str], hub: Hub, limits: Limits, line: Line = LINE) -> Iterator[Told]:
    """Wait for the turn, telling of the place, and run `sdhub`, line by line. Leaving the iteration ends it."""
    ticket = line.join(limits.waiting)
    if ticket is None:
        yield Told(error=f"{limits.waiting} publications wait already: come back later.", ended=True)
        return
    try:
        place = None
        while ahead := line.ahead(ticket):
            if ahead != place:
                place = ahead
                yield Told(
                    line=f"Place {ahead} of {len(line) - 1} in the queue: {ahead} to be made before yours …"
                )
            else:
                yield Told()  # where a visitor who left is noticed
            line.wait(LOOK_SECONDS)
        yield from _alone(words, hub, limits)
    finally:
        line.leave(ticket)


def tidy(limits: Limits) -> None:
    """Clear what dead processes left, and what was not used for longest, down to the bound: of the work folder,
    and of what was read of checkpoints that visitors looked at."""
    clear_downloads(int(limits.kept))
    gone = cache.clear(max_bytes=int(limits.kept))
    if gone:
        logger.info("cleared %d entries, %d bytes", len(gone), sum(each.bytes for each in gone))


def _alone(words: Sequence[str], hub: Hub, limits: Limits) -> Iterator[Told]:
    try:
        with temporary("publisher") as home:  # of huggingface_hub: no token of anyone else is in it
            environment = {name: os.environ[name] for name in KEPT if name in os.environ}
            environment |= {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token or ""}
            (home / "tmp").mkdir()
            environment |= {"TMPDIR": str(home / "tmp")}
            yield from _run(words, environment, home / "said", limits.seconds)
    finally:
        tidy(limits)


def _run(words: Sequence[str], environment: dict[str, str], said: Path, seconds: float) -> Iterator[Told]:
    with said.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(  # noqa: S603 — our own program, and no value is an option
            [*COMMAND, *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_listen, args=(process.stderr, lines), daemon=True).start()
    deadline, last = time.monotonic() + seconds, ""
    try:
        while time.monotonic() < deadline:
            try:
                line = lines.get(timeout=min(LOOK_SECONDS, max(0.01, deadline - time.monotonic())))
            except queue.Empty:
                if process.poll() is not None:  # what it started may hold its pipe open
                    break
                yield Told()
                continue
            if line is None:
                break
            last = " ".join(line.split())[:300] or last
            yield Told(line=last)
        try:
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            yield Told(
                error=f"It took longer than {seconds / 60:.0f} minutes, and was ended. {ELSEWHERE}", ended=True
            )
            return
    finally:
        _end(process)
    yield _ended(said.read_text(encoding="utf-8", errors="replace"), code, last)


ELSEWHERE = "On a machine of yours it may take what it takes: sdhub publish."


def _listen(stream: IO[str] | None, lines: queue.Queue[str | None]) -> None:
    with suppress(ValueError, OSError):  # closed meanwhile
        for line in stream or ():
            lines.put(line)
    lines.put(None)


def _end(process: subprocess.Popen[str]) -> None:
    """End the process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS if number == signal.SIGTERM else None)


def _ended(text: str, code: int, last: str) -> Told:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if isinstance(document, dict):
        return Told(result=document, ended=True, code=code)
    return Told(error=last or f"sdhub ended with {code}", ended=True, code=code)
