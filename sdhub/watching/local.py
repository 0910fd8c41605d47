"""Orders done on this machine, one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from sdhub.checkpoint.resolve import resolve
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.watching.dispatch import failure, one_by_one
from sdhub.watching.orders import Order, Outcome
from sdhub.workflow.options import Options
from sdhub.workflow.publish import publish
from sdhub.workflow.report import Published

MISSING = Outcome("failed", "publish said nothing of it")


@dataclass(frozen=True)
class Local:
    """Publishes from `source` to `hub` ("local", or an address) with `options`; the variants are the order's."""

    options: Options
    source: Hub
    hub: str
    progress: Progress = SILENT

    def __call__(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Sequence[Outcome]]]:
        """Do each order."""
        return one_by_one(orders, self._publish)

    def _publish(self, order: Order) -> list[Outcome]:
        self.progress.note(str(order))
        checkpoint = resolve(order.source, hub=self.source)
        variants = () if self.options.recipe else order.variants
        options = replace(self.options, variants=variants)
        report = publish(checkpoint, options=options, hub=self.hub, source_hub=self.source, progress=self.progress)
        results = {each.name: _outcome(each) for each in report.variants}
        return [results.get(name, MISSING) for name in order.variants]


def _outcome(published: Published) -> Outcome:
    if published.error is not None:
        return failure(published.error)
    return Outcome("done", published.pull_request or published.url or published.repo)
