"""Who does the work: this machine, HF Jobs, or GitHub Actions.

A dispatcher draws orders (each is claimed as it is drawn) and yields each with the outcome of every task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from sdhub.errors import SdhubError
from sdhub.watching.orders import Order, Outcome

REFUSALS = (2, 3)  # exit codes of calls that are wrong and of refusals: the same at every try


class Dispatch(Protocol):
    """Draws orders and yields them with an outcome per task."""

    def __call__(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Sequence[Outcome]]]:
        """Do or send the orders."""


def one_by_one(
    orders: Iterable[Order], act: Callable[[Order], Sequence[Outcome]]
) -> Iterator[tuple[Order, Sequence[Outcome]]]:
    """Each order by itself; one that fails is no reason to stop."""
    for order in orders:
        try:
            yield order, act(order)
        except SdhubError as error:
            yield order, [failure(error)] * len(order.tasks)


def failure(error: SdhubError) -> Outcome:
    """What an error means for a task."""
    reason = f"{error.message} ({error.hint})" if error.hint else error.message
    return Outcome("refused" if error.exit_code in REFUSALS else "failed", reason)
