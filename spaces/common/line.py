"""Turns: one at a time, and everyone knows how many come before."""

from __future__ import annotations

import threading


class Line:
    """Those who wait, and the one whose turn it is: first come, first served. `what` is made for each."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._guard = threading.Condition()
        self._tickets: list[object] = []

    def join(self, most: int) -> object | None:
        """A ticket; None where `most` wait already."""
        with self._guard:
            if len(self._tickets) > most:
                return None
            ticket = object()
            self._tickets.append(ticket)
            return ticket

    def ahead(self, ticket: object) -> int:
        """How many come before a ticket; 0 is its turn."""
        with self._guard:
            return self._tickets.index(ticket)

    def wait(self, seconds: float) -> None:
        """Until something moves, at most for so long."""
        with self._guard:
            self._guard.wait(seconds)

    def leave(self, ticket: object) -> None:
        """Make room for the next."""
        with self._guard:
            self._tickets.remove(ticket)
            self._guard.notify_all()

    def __len__(self) -> int:
        return len(self._tickets)

    def __str__(self) -> str:
        waiting = max(0, len(self) - 1)
        return f"One {self.what} is being made, {waiting} wait." if len(self) else "Nobody waits."
