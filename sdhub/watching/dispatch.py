"""Who does the work: this machine, HF Jobs, or GitHub Actions.

A dispatcher draws orders (each is claimed as it is drawn) and yields each with the outcome of every task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from sdhub.core.disk import full_disk, words_of
from sdhub.core.errors import SdhubError
from sdhub.watching.orders import Order, Outcome

SAID = 300  # characters of an error that is not ours
REFUSALS = (2, 3)  # exit codes of calls that are wrong and of refusals: the same at every try


class Dispatch(Protocol):
    """Draws orders and yields them with an outcome per task."""

    def __call__(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Sequence[Outcome]]]:
        """Do or send the orders."""


def one_by_one(
    orders: Iterable[Order], act: Callable[[Order], Sequence[Outcome]]
) -> Iterator[tuple[Order, Sequence[Outcome]]]:
    """Each order by itself; one that fails, however it does, is no reason to stop."""
    for order in orders:
        try:
            outcomes = act(order)
        except BaseException as error:  # noqa: BLE001 — of any library; what ends the program is raised again
            outcomes = [failure(error)] * len(order.tasks)
        yield order, outcomes


def failure(error: BaseException) -> Outcome:
    """What an error means for a task. Raises again what is to end the program."""
    refused = isinstance(error, SdhubError) and error.exit_code in REFUSALS
    return Outcome("refused" if refused else "failed", reason_of(error))


def reason_of(error: BaseException) -> str:
    """An error in one line; one that is not ours is named by its kind. Raises again what is to end the program."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        raise error
    full = full_disk(error)
    if full is not None:
        error = full
    if isinstance(error, SdhubError):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    said = words_of(error)[:SAID]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
