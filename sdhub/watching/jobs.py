"""Orders sent as HF Jobs, the Hub's own engine.

A job is labelled with the order's key. Before one is made, jobs with that label are looked for, so that an order
that was sent and whose answer was lost is not sent again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from sdhub.backends.base import backends
from sdhub.core.errors import UsageError
from sdhub.core.hub import PUBLIC, Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.watching.command import publish_arguments
from sdhub.watching.dispatch import one_by_one
from sdhub.watching.orders import Order, Outcome
from sdhub.workflow.options import Options

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

LABEL = "sdhub"
FLAVOR, TIMEOUT = "cpu-upgrade", "6h"
GONE = {"CANCELED", "DELETED", "ERROR"}  # a job of these stages did not do its order


@dataclass(frozen=True)
class Jobs:
    """Sends orders to the jobs of `namespace`; `token` goes along as a secret, and is needed to publish.

    `requirement` is the distribution to run, such as `sdhub[openvino]==0.1.0`; None is this version.
    """

    options: Options
    hub: Hub
    namespace: str
    flavor: str = FLAVOR
    timeout: str = TIMEOUT
    requirement: str | None = None
    progress: Progress = SILENT

    def __post_init__(self) -> None:
        if self.options.recipe:
            raise UsageError("a recipe file is not there where a job runs", hint="watch for presets: --variant")

    def __call__(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Sequence[Outcome]]]:
        """Send each order."""
        return one_by_one(orders, self._send)

    def _send(self, order: Order) -> list[Outcome]:
        job = self.hub.ask(f"run a job in {self.namespace}", lambda: self._job(order), self.progress)
        self.progress.note(f"{order}: {job.url}")
        return [Outcome("dispatched", job.url)] * len(order.tasks)

    def _job(self, order: Order) -> JobInfo:
        """The job of an order: one that is there (its answer may have been lost), else a new one."""
        labels = {LABEL: order.key}
        there = [job for job in self._jobs(labels) if _stage(job) not in GONE]
        return there[0] if there else self._run(order, labels)

    def _jobs(self, labels: dict[str, str]) -> list[JobInfo]:
        """All jobs with these labels; filtered once more, since older servers ignore the filter."""
        found = self.hub.api.list_jobs(labels=labels, namespace=self.namespace)
        return [job for job in found if (job.labels or {}).get(LABEL) == labels[LABEL]]

    def _run(self, order: Order, labels: dict[str, str]) -> JobInfo:
        extra = backends()[order.backend].extra
        env = {} if self.hub.url == PUBLIC else {"HF_ENDPOINT": self.hub.url}
        job: JobInfo = self.hub.api.run_uv_job(
            "sdhub",
            script_args=publish_arguments(order, self.options),
            dependencies=[self.requirement or f"sdhub[{extra}]=={metadata.version('sdhub')}"],
            env=env,
            secrets={"HF_TOKEN": self.hub.token},
            flavor=self.flavor,
            timeout=self.timeout,
            labels=labels,
            namespace=self.namespace,
        )
        return job


def _stage(job: JobInfo) -> str:
    return str(getattr(job.status.stage, "value", job.status.stage)).upper()
