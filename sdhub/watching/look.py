"""Looking at what was listed: which variants it can have, from its headers alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sdhub.errors import RefusedError, SdhubError, UnsupportedError, UsageError
from sdhub.job import Options
from sdhub.plan import make_plan, sampling_for
from sdhub.progress import SILENT, Progress
from sdhub.publishing.access import is_public_hub
from sdhub.recipes.recipe import load_recipe
from sdhub.sources import resolve
from sdhub.watching.orders import Task
from sdhub.watching.query import Found
from sdhub.watching.state import State
from sdhub.work import digest

PACE_SECONDS = 6.0  # some twenty requests each, and huggingface.co allows 1,000 in five minutes
PATIENCE = 3  # failures in a row, after which the rest waits for the next round


@dataclass
class Looker:
    """Looks at sources for what `options` want (their `namespace` is set), and notes the tasks in `state`."""

    options: Options
    state: State
    endpoint: str
    progress: Progress = SILENT
    _last: float = field(default=0.0, init=False)

    @property
    def wanted(self) -> str:
        """A hash of what is wanted of each source."""
        options = self.options
        recipe = load_recipe(options.recipe).sha256 if options.recipe else None
        return digest([sorted(options.variants), recipe, options.namespace, options.template])

    def look(self, found: list[Found]) -> bool:
        """Look at all that is new; whether all could be."""
        wanted, failures = self.wanted, 0
        complete = True
        for each in found:
            if self.state.knows(each.repository, each.sha, wanted):
                continue
            try:
                with self._paced():
                    self._look_at(each, wanted)
                failures = 0
            except SdhubError as error:
                self.progress.note(f"{each.repository}: {error.message}")
                complete, failures = False, failures + 1
                if failures >= PATIENCE:
                    self.progress.note("the Hub is in trouble: the rest waits for the next round")
                    break
        return complete

    @contextmanager
    def _paced(self) -> Iterator[None]:
        if is_public_hub(self.endpoint):
            time.sleep(max(0.0, self._last + PACE_SECONDS - time.monotonic()))
        self._last = time.monotonic()
        yield

    def _look_at(self, found: Found, wanted: str) -> None:
        tasks, reason = [], None
        try:
            tasks = tasks_of(found.repository, found.sha, self.options)
        except (UsageError, RefusedError) as error:  # the same at every look at this commit
            reason = error.message
            self.progress.note(f"{found.repository}: {reason}")
        for task in self.state.add(found.repository, found.sha, wanted, tasks, reason):
            self.progress.note(f"{found.repository} at {found.sha[:12]}: {task.variant} → {task.target}")


def tasks_of(repository: str, sha: str, options: Options) -> list[Task]:
    """The tasks that a source gives: of the variants asked for, those that it can have.

    Raises UnsupportedError where it can have none, and what `resolve` and `make_plan` raise.
    """
    checkpoint = resolve(f"{repository}@{sha}")
    namespace = options.namespace or "NAMESPACE"
    tasks, reasons = [], []
    wanted: list[tuple[str, ...]] = [(each,) for each in options.variants] or [()]
    for names in wanted:
        try:
            plan = make_plan(
                checkpoint,
                namespace=namespace,
                sampling=options.sampling or sampling_for(checkpoint),
                variants=names,
                recipe=options.recipe,
                template=options.template,
            )
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
