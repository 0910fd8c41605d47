"""Publishing for a visitor: `sdhub publish` in a process of its own, with the visitor's token and no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sdhub.endpoint import Endpoint

KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "OMP_NUM_THREADS", "SDHUB_HOME", "HOME")
LINES = 200
TURN = threading.Semaphore(1)  # one at a time: memory is short


@dataclass(frozen=True)
class Told:
    """A line about what is going on, or, at the end, the result: the document, or the error in one line."""

    line: str = ""
    result: dict[str, Any] | None = None
    error: str = ""
    ended: bool = False


def arguments(
    source: str, variants: Sequence[str], namespace: str, *, create_pr: bool, private: bool
) -> list[str]:
    """Of `sdhub`. Every value was chosen by a visitor: none of them can be an option."""
    words = ["publish", "--json", "--yes", f"--to={namespace}", *(f"--variant={name}" for name in variants)]
    words += ["--create-pr"] if create_pr else []
    words += ["--private"] if private else []
    return [*words, "--", source]


def make(words: Sequence[str], hub: Endpoint) -> Iterator[Told]:
    """Run `sdhub`, line by line. Leaving the iteration ends it."""
    if not TURN.acquire(blocking=False):
        yield Told(line="Waiting for another publication to end …")
        TURN.acquire()
    try:
        with tempfile.TemporaryDirectory() as home:  # of huggingface_hub: no token of anyone else is in it
            environment = {name: os.environ[name] for name in KEPT if name in os.environ}
            environment |= {"HF_HOME": home, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token or ""}
            yield from _run(words, environment)
    finally:
        TURN.release()


def _run(words: Sequence[str], environment: dict[str, str]) -> Iterator[Told]:
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(  # noqa: S603 — our own program, and no value is an option
            [sys.executable, "-I", "-m", "sdhub", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        last = ""
        try:
            for line in process.stderr or ():
                last = " ".join(line.split())[:300] or last
                yield Told(line=last)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        yield _ended(said.read(), code, last)


def _ended(text: str, code: int, last: str) -> Told:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if isinstance(document, dict):
        return Told(result=document, ended=True)
    return Told(error=last or f"sdhub ended with {code}", ended=True)
