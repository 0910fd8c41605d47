"""Orders sent as HF Jobs, as `publish --on hf-jobs` sends them: one for each variant, found again by its label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sdhub.core.errors import SdhubError
from sdhub.elsewhere.engine import Engine, ended, place_of
from sdhub.elsewhere.follow import Ended
from sdhub.elsewhere.publish import StartedJob, plan_jobs, start
from sdhub.watching.command import words_of
from sdhub.watching.dispatch import REFUSALS, failure, one_by_one
from sdhub.watching.orders import Order, Outcome, Task
from sdhub.workflow.many import PublishRequest
from sdhub.workflow.options import Options

if TYPE_CHECKING:
    from huggingface_hub import JobInfo


@dataclass(frozen=True)
class Jobs:
    """Sends orders to the jobs of an engine, and tells later what became of them."""

    options: Options
    engine: Engine

    def __call__(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Sequence[Outcome]]]:
        """Send each order."""
        return one_by_one(orders, self._send)

    def _send(self, order: Order) -> list[Outcome]:
        recipe = self.options.recipe
        wanted = replace(self.options, variants=() if recipe else order.variants)
        files = {place_of(recipe): recipe} if recipe else {}
        words = words_of(self.options) + [word for place in files for word in ("--recipe", place)]
        planned = plan_jobs(self.engine, PublishRequest(order.source, wanted), words, files)
        found = {each.planned.variant.recipe.sha256: _sent(each) for each in start(self.engine, planned)}
        return [found.get(task.recipe, Outcome("failed", "no job was made of it")) for task in order.tasks]

    def became(self, sent: Mapping[Task, str]) -> Iterator[tuple[Task, Outcome]]:
        """The outcome of each task whose job (by its address) has ended. Raises HubError."""
        if not sent:
            return
        jobs = self.engine.hub.ask("read the jobs", self.engine.jobs, self.engine.progress)
        known = {job.url: job for job in jobs}
        for task, url in sent.items():
            job = known.get(url)
            if job is None:
                yield task, Outcome("failed", "its job is gone")
            elif ended(job):
                yield task, self._outcome(task, job)

    def _outcome(self, task: Task, job: JobInfo) -> Outcome:
        end = Ended(self.engine.hub, job)
        if end.done:
            return Outcome("done", f"{self.engine.hub.url}/{task.target}")
        error = end.failure()
        return Outcome("refused" if end.exit_code in REFUSALS else "failed", f"{error.message} ({job.url})")


def _sent(started: StartedJob) -> Outcome:
    if started.job is None:
        return failure(started.error or SdhubError("it was not started"))
    return Outcome("dispatched", started.job.url)
