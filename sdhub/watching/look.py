"""Looking at what was listed: which variants it can have, from its headers alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from sdhub.checkpoint.resolve import resolve
from sdhub.core.errors import HubError, RefusedError, UnsupportedError, UsageError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.core.work import digest
from sdhub.recipes.recipe import load_recipe
from sdhub.watching.dispatch import reason_of
from sdhub.watching.orders import Task
from sdhub.watching.query import Found
from sdhub.watching.state import State
from sdhub.workflow.options import Options
from sdhub.workflow.plan import make_plan

PACE_SECONDS = 6.0  # some twenty requests each, and huggingface.co allows 1,000 in five minutes
PATIENCE = 3  # failures in a row, after which the rest waits for the next round


@dataclass
class Looker:
    """Looks on `hub` for what `options` want (their `namespace` is set), and notes the tasks in `state`."""

    options: Options
    state: State
    hub: Hub
    progress: Progress = SILENT
    max_bytes: int | None = None  # of a source's weights; larger ones are refused
    _last: float = field(default=0.0, init=False)

    @property
    def wanted(self) -> str:
        """A hash of what is wanted of each source."""
        options = self.options
        recipe = load_recipe(options.recipe).sha256 if options.recipe else None
        return digest([sorted(options.variants), recipe, options.namespace, options.template])

    def look(self, found: list[Found], *, at_once: bool = True) -> bool:
        """Look at all that is new; whether all is settled.

        A source that fails, however it does, is noted and looked at again, a few times; where not `at_once`, it
        waits first, longer after each look.
        """
        wanted, failures = self.wanted, 0
        complete = True
        for each in found:
            try:
                if self.state.knows(each.repository, each.sha, wanted):
                    continue
                if not at_once and self.state.waits(each.repository, each.sha, wanted):
                    complete = False
                    continue
                with self._paced():
                    self._look_at(each, wanted)
                failures = 0
            except BaseException as error:  # noqa: BLE001 — of any library; what ends the program is raised again
                complete = self._trouble(each, wanted, reason_of(error)) and complete
                failures = failures + 1 if isinstance(error, HubError) else 0
                if failures >= PATIENCE:
                    self.progress.note("the Hub is in trouble: the rest waits for the next round")
                    return False
        return complete

    def _trouble(self, found: Found, wanted: str, reason: str) -> bool:
        """Note a failure; whether the source is given up."""
        self.progress.note(f"{found.repository}: {reason}")
        try:
            return self.state.trouble(found.repository, found.sha, wanted, reason)
        except Exception as error:  # noqa: BLE001 — the state cannot be written: the next round tries again
            self.progress.note(f"{found.repository}: {reason_of(error)}")
            return False

    @contextmanager
    def _paced(self) -> Iterator[None]:
        if self.hub.public:
            time.sleep(max(0.0, self._last + PACE_SECONDS - time.monotonic()))
        self._last = time.monotonic()
        yield

    def _look_at(self, found: Found, wanted: str) -> None:
        tasks, reason = [], None
        try:
            tasks = tasks_of(found.repository, found.sha, self.hub, self.options, self.max_bytes)
        except (UsageError, RefusedError) as error:  # the same at every look at this commit
            reason = error.message
            self.progress.note(f"{found.repository}: {reason}")
        for task in self.state.add(found.repository, found.sha, wanted, tasks, reason):
            self.progress.note(f"{found.repository} at {found.sha[:12]}: {task.variant} → {task.target}")


def tasks_of(repository: str, sha: str, hub: Hub, options: Options, max_bytes: int | None = None) -> list[Task]:
    """The tasks that a source on `hub` gives: of the variants asked for, those that it can have.

    Raises UnsupportedError where it can have none, and what `resolve` and `make_plan` raise.
    """
    checkpoint = resolve(f"{repository}@{sha}", hub=hub)
    if max_bytes is not None and checkpoint.bytes > max_bytes:
        raise UnsupportedError(
            f"{repository} has {checkpoint.bytes / 1e9:.1f} GB of weights; here it may have {max_bytes / 1e9:.1f}"
        )
    tasks, reasons = [], []
    wanted: list[tuple[str, ...]] = [(each,) for each in options.variants] or [()]
    for names in wanted:
        try:
            plan = make_plan(checkpoint, replace(options, variants=names))
        except UnsupportedError as error:
            reasons.append(error)
            continue
        tasks += [
            Task(repository, checkpoint.sha or sha, each.recipe.sha256, each.name, each.backend.name, each.repo_id)
            for each in plan.variants
        ]
    if not tasks:
        raise reasons[0]
    return tasks
