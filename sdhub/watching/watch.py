"""Watching a Hub: new and changed checkpoints become variants, each once.

list → look (what can it become?) → note the tasks → claim → do or send → note the outcome

What is known is kept in SQLite (`sdhub.watching.state`); a watcher that is killed goes on where it was.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Literal

from sdhub.core.errors import HubError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.elsewhere.engine import Engine
from sdhub.watching.dispatch import Dispatch, reason_of
from sdhub.watching.github import github as to_github
from sdhub.watching.jobs import Jobs
from sdhub.watching.local import Local
from sdhub.watching.look import Looker
from sdhub.watching.orders import Order, Outcome, Task
from sdhub.watching.published import is_published
from sdhub.watching.query import Query, listed
from sdhub.watching.state import State
from sdhub.workflow.options import Options

INTERVAL_SECONDS = 15 * 60
Where = Literal["local", "github"]


def dispatcher(
    where: Where,
    options: Options,
    *,
    source: Hub,
    target: Hub,
    github: str | None = None,
    engine: Engine | None = None,
    progress: Progress = SILENT,
) -> Dispatch:
    """Who makes variants on `target` of what is on `source`: the jobs of an engine, else this machine or GitHub
    Actions.

    Raises UsageError.
    """
    if engine is not None:
        return Jobs(options, engine)
    if where == "local":
        return Local(options, source, target.name, progress)
    return to_github(options, github, progress)


class Watcher:
    """Finds what `query` names on the Hub `source`, and has `dispatch` do it; `target` is where variants go.

    The `namespace` of `options` is set.
    """

    def __init__(
        self,
        query: Query,
        options: Options,
        state: State,
        dispatch: Dispatch,
        *,
        source: Hub,
        target: Hub,
        progress: Progress = SILENT,
    ) -> None:
        self.query = query
        self.state = state
        self.dispatch = dispatch
        self.source = source
        self.target = target
        self.progress = progress
        self.looker = Looker(options, state, source, progress)

    def watch(self, stop: threading.Event, interval: float = INTERVAL_SECONDS) -> None:
        """Round after round, `interval` seconds apart, until `stop` is set; trouble is waited for."""
        while not stop.is_set():
            try:
                self.round(at_once=False)
            except Exception as error:  # noqa: BLE001 — the next round may do better
                self.progress.note(f"{reason_of(error)}; the next look is in {interval:.0f} s")
            stop.wait(interval)

    def round(self, *, at_once: bool = True) -> None:
        """Look once, and do all there is to do. Raises HubError where the list cannot be had.

        Not `at_once`: what failed before waits first, longer after each try.
        """
        look_back(self.state, self.dispatch, self.progress)
        self.state.recover(at_once=at_once)
        self.look(at_once=at_once)
        carry_out(self.state, self.dispatch, self.target, self.progress)

    def look(self, *, at_once: bool = True) -> None:
        """Note what is new. Raises HubError where the list cannot be had."""
        query = self.query
        by_change = query.likes_over is None and query.since is None  # likes grow without a change
        key = f"{query.key} {self.looker.wanted}"
        after = self.state.mark(key) if by_change else None
        try:
            found = listed(query, self.source, after, self.progress)
        except (LookupError, TypeError, AttributeError, RecursionError) as error:  # an odd answer
            raise HubError(
                f"the list of models cannot be read ({reason_of(error)})", hint="is it a Hub?"
            ) from error
        if self.looker.look(found, at_once=at_once) and found and by_change:
            self.state.set_mark(key, found[-1].changed)


def look_back(state: State, dispatch: Dispatch, progress: Progress = SILENT) -> None:
    """Note what became of the jobs that were sent: one that failed is a failed try, and is sent again."""
    if not isinstance(dispatch, Jobs):
        return
    for task, outcome in dispatch.became(state.sent()):
        state.settle(task, outcome)
        if outcome.status != "done":
            progress.note(f"{task.repository}: {task.variant} {outcome.status}: {outcome.detail}")


def carry_out(state: State, dispatch: Dispatch, target: Hub, progress: Progress = SILENT) -> None:
    """Have all pending tasks done or sent, and note what became of each; what fails of one stops no other."""
    for order, outcomes in dispatch(_orders(state, target, progress)):
        for task, outcome in zip(order.tasks, outcomes, strict=True):
            try:
                state.settle(task, outcome)
            except BaseException as error:  # noqa: BLE001 — it was begun: the next round finds it unsettled
                progress.note(f"{task.repository}: {task.variant} cannot be noted: {reason_of(error)}")
            if outcome.status in {"failed", "refused"}:
                progress.note(f"{task.repository}: {task.variant} {outcome.status}: {outcome.detail}")


def _orders(state: State, target: Hub, progress: Progress) -> Iterator[Order]:
    """Claimed orders, without the tasks whose variant is on the Hub already: a state may have been lost."""
    while order := state.claim():
        left = tuple(task for task in order.tasks if not _published(task, state, target, progress))
        if left:
            yield Order(left)


def _published(task: Task, state: State, target: Hub, progress: Progress) -> bool:
    """Whether there is nothing to do. What was begun here before is finished here, check and all."""
    try:
        if state.attempts(task) > 1:
            return False
        there = is_published(task, target)
        if there:
            state.settle(task, Outcome("done", f"{target.url}/{task.target}"))
    except BaseException as error:  # noqa: BLE001 — then it is done, or fails, like any other
        progress.note(f"{task.target}: {reason_of(error)}")
        return False
    return there
