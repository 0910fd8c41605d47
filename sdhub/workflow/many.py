"""Several sources one after another, or side by side within a bound of memory; one failure stops no other.

Each source is published in a process of its own, so that its memory is given back when it is done.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from math import inf
from pathlib import Path
from typing import Any

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.resolve import resolve
from sdhub.core.errors import SdhubError, UsageError
from sdhub.core.isolated import run_isolated
from sdhub.core.machine import free_memory
from sdhub.core.progress import SILENT, Progress
from sdhub.core.scratch import temporary
from sdhub.core.units import GIB
from sdhub.workflow.options import Options
from sdhub.workflow.plan import drawn_as, make_plan
from sdhub.workflow.publish import prepare, run
from sdhub.workflow.report import Report

USUAL_MEMORY = 8.0 * GIB  # where the system does not tell
SHARE = 0.8  # of the machine's free memory, where no bound is given


@dataclass(frozen=True)
class PublishRequest:
    """One source to publish, as the user named it."""

    source: str
    options: Options
    """Their `sampling` is found out from the rest."""
    _: KW_ONLY
    loras: Sequence[str] = ()
    """To fuse first, each `ID_OR_FILE[:scale]`."""
    controlnets: Sequence[str] = ()
    """Ids or folders of what goes along."""
    safety_checker: bool = False
    """Whether the checkpoint's goes along."""
    config: str | None = None
    """Id or folder of a single file's configs."""
    prompts: Path | None = None
    """A JSON file of evidence prompts."""
    steps: int | None = None
    guidance: float | None = None
    hub: str | None = None
    """ "local", an address, or None for the default."""
    dry_run: bool = False
    """Whether nothing is written to any Hub."""

    def resolved(self) -> tuple[Checkpoint, Options]:
        """The checkpoint, and how to publish it. Raises SdhubError."""
        checkpoint = resolve(self.source, self.loras, self.config, self.controlnets, self.safety_checker)
        return checkpoint, drawn_as(self.options, checkpoint, self.prompts, self.steps, self.guidance)

    def peak_bytes(self) -> int:
        """Forecast of the most memory that a variant takes; they are made one after another."""
        checkpoint, options = self.resolved()
        plan = make_plan(checkpoint, options)
        return max(plan.peak_bytes(each) for each in plan.variants)


@dataclass(frozen=True)
class SourceResult:
    """What came of one source: its report as JSON, or the error that kept it from beginning.

    `exit_code` is that of its first failure.
    """

    source: str
    report: dict[str, Any] | None = None
    error: SdhubError | None = None
    exit_code: int = 0

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        error = {"message": self.error.message, "hint": self.error.hint} if self.error else None
        return {"named": self.source, "error": error, **(self.report or {"source": None, "variants": []})}


def publish_many(
    orders: Sequence[PublishRequest], *, jobs: int = 1, memory: float | None = None, progress: Progress = SILENT
) -> list[SourceResult]:
    """Publish each order, `jobs` at a time as far as `memory` bytes allow (default: 80 % of what is free).

    Outcomes come in the order of the orders. An order whose forecast alone exceeds `memory` runs by itself. Raises
    UsageError for a `memory` that is no number above zero.
    """
    if memory is not None and not 0 < memory < inf:
        raise UsageError(f"{memory:g} bytes of memory mean nothing", hint="a number above zero")
    bound = _Bound(memory if memory is not None else (free_memory() or USUAL_MEMORY) * SHARE)

    def one(order: PublishRequest) -> SourceResult:
        try:
            with bound.taken(order.peak_bytes()):
                return _run_isolated(order, progress if jobs == 1 else Named(order.source, progress))
        except SdhubError as error:
            return SourceResult(order.source, error=error, exit_code=error.exit_code)

    if jobs == 1:
        return [one(order) for order in orders]
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, orders))


def _run_isolated(order: PublishRequest, progress: Progress) -> SourceResult:
    progress.note(f"{order.source}:")
    with temporary() as folder:
        out = folder / "report.json"
        run_isolated(fulfil, order, out, progress=progress)
        written = json.loads(out.read_text(encoding="utf-8"))
    return SourceResult(order.source, written["report"], exit_code=written["exit_code"])


def fulfil(order: PublishRequest, out: Path, progress: Progress) -> None:
    """Publish one order and write its report: the work of a process of its own."""
    checkpoint, options = order.resolved()
    with prepare(checkpoint, options, hub=order.hub, dry_run=order.dry_run) as job:
        report = run(job, progress)
    out.write_text(json.dumps({"report": report.document(), "exit_code": exit_code(report)}), encoding="utf-8")


def exit_code(report: Report) -> int:
    """That of the first variant that failed, or 0."""
    return next((each.error.exit_code for each in report.variants if each.error), 0)


class _Bound:
    """Memory that is handed out, and waited for."""

    def __init__(self, total: float) -> None:
        self._total = total
        self._used = 0.0
        self._running = 0
        self._change = threading.Condition()

    @contextmanager
    def taken(self, size: float) -> Iterator[None]:
        """Hold `size` bytes for the block; begins when they are free, or when nothing else runs."""
        with self._change:
            self._change.wait_for(lambda: self._used + size <= self._total or not self._running)
            self._used += size
            self._running += 1
        try:
            yield
        finally:
            with self._change:
                self._used -= size
                self._running -= 1
                self._change.notify_all()


class Named(Progress):
    """Notes with the source's name before them, and no bars: several talk at once."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name = name
        self._progress = progress

    def note(self, text: str) -> None:
        self._progress.note(f"[{self._name}] {text.strip()}")
