"""The webhook of this Space: what changed is published by one worker, each commit and recipe once."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import looking
import making
from limits import Limits

from sdhub.core.errors import UsageError
from sdhub.core.hub import Hub
from sdhub.core.work import home
from sdhub.publishing.target import Target
from sdhub.watching.command import publish_arguments
from sdhub.watching.dispatch import REFUSALS, Dispatch, one_by_one, reason_of
from sdhub.watching.look import Looker
from sdhub.watching.orders import Order, Outcome
from sdhub.watching.query import Found
from sdhub.watching.state import State
from sdhub.watching.watch import carry_out
from sdhub.watching.webhook import Deliveries, Webhook
from sdhub.workflow.options import Options

RETRY_SECONDS = 600.0
MANY = 10**6  # the webhook waits as long as it takes

logger = logging.getLogger("sdhub.webhook")


def from_environment(hub: Hub, limits: Limits) -> Webhook | None:
    """The webhook that the Space's settings ask for; None where there is no `WEBHOOK_SECRET`.

    Raises UsageError where a setting is missing.
    """
    secret, namespace = os.environ.get("WEBHOOK_SECRET"), os.environ.get("WEBHOOK_NAMESPACE")
    if not secret:
        return None
    if not namespace or not hub.token:
        raise UsageError("the webhook needs WEBHOOK_NAMESPACE and HF_TOKEN", hint="set them, or no WEBHOOK_SECRET")
    variants = tuple(os.environ.get("WEBHOOK_VARIANTS", "").split())
    folder = home() / "webhook"
    deliveries = Deliveries(folder / "deliveries.sqlite3")
    options = Options(namespace=namespace, variants=variants)
    worker = Worker(options, hub, folder, deliveries, Isolated(options, hub, limits), max_bytes=int(limits.source))
    worker.start()
    return Webhook(secret, deliveries, worker.head, worker.wake)


@dataclass(frozen=True)
class Isolated:
    """Publishes each order as a visitor's is: in a process of its own, in its turn, and within the same bounds."""

    options: Options
    hub: Hub
    limits: Limits

    def __call__(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Sequence[Outcome]]]:
        """Do each order."""
        return one_by_one(orders, self._publish)

    def _publish(self, order: Order) -> list[Outcome]:
        reason = self._why_not(order)
        if reason is not None:
            return [Outcome("refused", reason)] * len(order.tasks)
        words, limits = publish_arguments(order, self.options), replace(self.limits, waiting=MANY)
        *_, event = making.make(words, self.hub, limits)
        if event.result is None:
            return [Outcome("refused" if event.code in REFUSALS else "failed", event.error)] * len(order.tasks)
        results = {each["name"]: each for each in event.result["variants"]}
        return [_outcome(results.get(name, {}), event.code) for name in order.variants]

    def _why_not(self, order: Order) -> str | None:
        """Why this Space does not make it, as a visitor would be event. Raises SdhubError."""
        checkpoint = looking.inspected(order.source, self.hub, self.limits)
        choices = (looking.choice(checkpoint, name, self.limits) for name in order.variants)
        return next((f"{each.name}: {each.reason}" for each in choices if each.reason is not None), None)


def _outcome(result: Mapping[str, Any], code: int) -> Outcome:
    if result.get("status") in {"published", "unchanged"}:
        return Outcome("done", str(result.get("pull_request") or result.get("url") or result["repo"]))
    reason = str(result.get("reason") or "publish said nothing of it")
    return Outcome("refused" if code in REFUSALS else "failed", reason)


class Worker:
    """Looks at what changed and publishes it, one after another, in a thread of its own."""

    def __init__(
        self,
        options: Options,
        hub: Hub,
        folder: Path,
        deliveries: Deliveries,
        dispatch: Dispatch,
        max_bytes: int | None = None,
    ) -> None:
        self._hub = hub
        self._deliveries = deliveries
        self._state = State(folder / "state.sqlite3")
        for aside in filter(None, (self._state.set_aside, deliveries.set_aside)):
            logger.warning("webhook: a damaged file was set aside as %s, and a new one begun", aside)
        self._dispatch = dispatch
        self._looker = Looker(options, self._state, hub, max_bytes=max_bytes)
        self._news = threading.Event()

    def start(self) -> None:
        """Begin, with what an earlier process left."""
        threading.Thread(target=self._work, daemon=True).start()

    def wake(self) -> None:
        """There is something to do."""
        self._news.set()

    def head(self, repository: str) -> str | None:
        """The commit that `main` of a model is at. Raises HubError."""
        info = Target(repository, self._hub).info()
        return info.sha if info else None

    def _work(self) -> None:
        while True:
            self.round()
            self._news.wait(RETRY_SECONDS)
            self._news.clear()

    def round(self) -> None:
        """Do all there is to do; what fails is tried again, later each time. Nothing raised ends the worker."""
        try:
            self._state.recover(at_once=False)
            for change in self._deliveries.waiting():
                found = Found(change.repository, change.sha, datetime.now(timezone.utc))
                if self._looker.look([found], at_once=False):
                    self._deliveries.settle(change)
            carry_out(self._state, self._dispatch, self._hub)
        except Exception as error:  # noqa: BLE001 — told, and the next round comes
            logger.warning("webhook: %s", reason_of(error))
