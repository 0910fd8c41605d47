"""Following a job: what it says becomes progress here, as if it ran here, and the document it ends with is read.

A job of sdhub says on its log what it would say on a terminal's standard error, counts of its bars included, and
then the JSON document of its command.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdhub.core import nextsteps
from sdhub.core.errors import SdhubError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress, Task
from sdhub.core.retry import Patience, patiently
from sdhub.elsewhere.engine import WAITS, ended, stage

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

LOOK_SECONDS = 2.0
PATIENCE = Patience(attempts=30)  # a Hub may be away for some ten minutes
_BAR = re.compile(r"  (\S.*?) …(?: (\d+)(?:/(\d+))? ?(.*))?")  # as `sdhub.cli.console.Counts` writes it
_CODE = re.compile(r"exit code:? (\d{1,3})\b")


@dataclass(frozen=True)
class Ended:
    """A job of a Hub that runs no more, and all that it said."""

    hub: Hub
    job: JobInfo
    lines: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether its command succeeded."""
        return stage(self.job) == "COMPLETED"

    @property
    def exit_code(self) -> int:
        """That of its command where it is one of sdhub's and the Hub tells it, else 1."""
        found = _CODE.search(self.job.status.message or "")
        return 0 if self.done else int(found[1]) if found and int(found[1]) in (2, 3) else 1

    def document(self) -> dict[str, Any] | None:
        """The first JSON object among its lines; None where it said none."""
        decoder = json.JSONDecoder()
        for number, line in enumerate(self.lines):
            if line.startswith("{"):
                try:
                    found, _ = decoder.raw_decode("\n".join(self.lines[number:]))
                except ValueError:
                    continue
                return dict(found)
        return None

    def failure(self) -> SdhubError:
        """Why it failed: what sdhub said last of it, else what the Hub says."""
        said = next((each[7:] for each in reversed(self.lines) if each.startswith("error: ")), "")
        hint = next((each[8:] for each in reversed(self.lines) if each.startswith("  hint: ")), "") if said else ""
        status = (
            f"the job was {stage(self.job).lower()}" if not self.job.status.message else self.job.status.message
        )
        way = nextsteps.follow(self.job.id, self.job.owner.name, self.hub.option)
        error = SdhubError(said or status, hint=hint or f"its log: {way}")
        error.exit_code = self.exit_code
        return error


def follow(hub: Hub, namespace: str, job_id: str, progress: Progress = SILENT, *, replay: bool = False) -> Ended:
    """Follow a job to its end, however often the connection or the Hub is lost. Raises HubError.

    Of one that has ended already nothing is told, unless `replay`. Safe for threads beside each other.
    """
    lines: list[str] = []
    with hub.telling(f"follow the job {job_id}"), _Teller(progress).telling() as teller:
        job = look(hub, namespace, job_id, progress)
        if ended(job) and not replay:
            progress.note("  it has ended already")
            return Ended(hub, job, tuple(_after(hub, namespace, job, 0, progress)))
        while True:
            job = look(hub, namespace, job_id, progress)
            if stage(job) == WAITS:
                teller.waits()
                time.sleep(LOOK_SECONDS)
                continue
            for line in _after(hub, namespace, job, len(lines), progress):
                lines.append(line)
                teller.line(line)
            if ended(job):
                return Ended(hub, job, tuple(lines))


def look(hub: Hub, namespace: str, job_id: str, progress: Progress = SILENT) -> JobInfo:
    """A job as it is now. Raises errors of huggingface_hub."""
    api = hub.api
    return patiently(
        "look at the job",
        lambda: api.inspect_job(job_id=job_id, namespace=namespace),
        patience=PATIENCE,
        progress=progress,
    )


def _after(hub: Hub, namespace: str, job: JobInfo, known: int, progress: Progress) -> Iterator[str]:
    """The lines of a job's log after the first `known`; of one that runs, as they come, until the stream ends.

    The log is always given from its beginning, in the same order.
    """
    attempt = 0
    while True:
        try:
            lines = hub.api.fetch_job_logs(job_id=job.id, namespace=namespace, follow=not ended(job))
            for number, line in enumerate(lines):
                if number >= known:
                    known, attempt = number + 1, 0
                    yield line
            return
        except Exception as error:
            attempt += 1
            wait = PATIENCE.wait(attempt, error)
            if wait is None:
                raise
            progress.note(f"read the log: connection lost, retrying in {wait:.0f} s")
            time.sleep(wait)


class _Teller:
    """Makes progress of the lines of a log."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar = ExitStack()
        self._label: str | None = None
        self._task = Task()
        self._count = 0
        self._document = False
        self._said = False

    @contextmanager
    def telling(self) -> Iterator[_Teller]:
        with self._bar:
            yield self

    def waits(self) -> None:
        """The job has no machine yet."""
        if not self._said:
            self._progress.note("waiting for a machine")
        self._said = True

    def line(self, line: str) -> None:
        """One more line."""
        if line == "{":
            self._document = True
        found = None if self._document else _BAR.fullmatch(line)
        if found:
            self._advance(found[1], int(found[2] or 0), float(found[3]) if found[3] else None, found[4] or "")
            return
        self._bar.close()
        self._label = None
        if not self._document:
            self._progress.note(line)
        if line == "}":
            self._document = False

    def _advance(self, label: str, count: int, total: float | None, unit: str) -> None:
        if label != self._label or count < self._count:
            self._bar.close()
            self._label, self._count = label, 0
            self._task = self._bar.enter_context(self._progress.task(label, total, unit))
        elif total:
            self._task.total(total)
        self._task.advance(count - self._count)
        self._count = count
