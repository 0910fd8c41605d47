"""How long work tells of itself.

Library code reports to a `Progress` and never prints; the console (`sdhub/cli/console.py`) draws bars with
rates and time left, tests and notebooks take the silent one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Task:
    """One bar. `advance` counts in the task's unit."""

    def advance(self, amount: float = 1.0) -> None:
        """Say that `amount` more units are done."""

    def total(self, amount: float) -> None:
        """Say how many units there are, once that is known."""


class Progress:
    """Silent. Subclasses draw."""

    def note(self, text: str) -> None:
        """Say one line: a stage begins, is reused, or ended."""

    @contextmanager
    def task(self, label: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """A bar for the work in the `with` block; `unit` is "B" for bytes, else a plural noun ("steps")."""
        yield Task()


SILENT = Progress()
