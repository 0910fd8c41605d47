"""The webhook of this Space: what changed is published by one worker, each commit and recipe once."""

from __future__ import annotations

import logging
import os
import threading
from datetime import datetime, timezone
from pathlib import Path

from sdhub.endpoint import Endpoint
from sdhub.errors import UsageError
from sdhub.job import Options
from sdhub.publishing.target import Target
from sdhub.watch import carry_out
from sdhub.watching.dispatch import Dispatch, reason_of
from sdhub.watching.local import Local
from sdhub.watching.look import Looker
from sdhub.watching.query import Found
from sdhub.watching.state import State
from sdhub.watching.webhook import Deliveries, Webhook
from sdhub.work import home

RETRY_SECONDS = 600.0

logger = logging.getLogger("sdhub.webhook")


def from_environment(hub: Endpoint) -> Webhook | None:
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
    worker = Worker(Options(namespace=namespace, variants=variants), hub, folder, deliveries)
    worker.start()
    return Webhook(secret, deliveries, worker.head, worker.wake)


class Worker:
    """Looks at what changed and publishes it, one after another, in a thread of its own."""

    def __init__(
        self,
        options: Options,
        hub: Endpoint,
        folder: Path,
        deliveries: Deliveries,
        dispatch: Dispatch | None = None,
    ) -> None:
        self._hub = hub
        self._deliveries = deliveries
        self._state = State(folder / "state.sqlite3")
        for aside in filter(None, (self._state.set_aside, deliveries.set_aside)):
            logger.warning("webhook: a damaged file was set aside as %s, and a new one begun", aside)
        self._dispatch = dispatch or Local(options, hub.name)
        self._looker = Looker(options, self._state, hub.url)
        self._news = threading.Event()

    def start(self) -> None:
        """Begin, with what an earlier process left."""
        threading.Thread(target=self._work, daemon=True).start()

    def wake(self) -> None:
        """There is something to do."""
        self._news.set()

    def head(self, repository: str) -> str | None:
        """The commit that `main` of a model is at. Raises HubError."""
        info = Target(repository, endpoint=self._hub.url, token=self._hub.token).info()
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
