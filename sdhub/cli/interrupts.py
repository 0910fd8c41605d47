"""Ctrl-C, from the first import to the last: one line, and exit code 130."""

from __future__ import annotations

import _thread
import signal
import sys
from types import FrameType
from typing import Any

INTERRUPTED = 130


class Interrupts:
    """Whether the user interrupted, whatever a library made of the KeyboardInterrupt."""

    def __init__(self) -> None:
        self.came = False

    def listen(self) -> None:
        """From now on; a process that was started to ignore interrupts goes on to."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)
            sys.unraisablehook = self._unraisable

    def tell(self) -> int:
        """Say so, and give the exit code. Further interrupts change nothing."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        from sdhub.cli.console import fail

        fail("interrupted", "run the same command again: finished stages are kept")
        # An interrupt within `exec` of a text, which dataclasses are made by, is noted by Python as not handled,
        # and ends the process by the signal after all; another text that is run clears that.
        exec("pass")  # noqa: S102
        return INTERRUPTED

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt

    def _unraisable(self, unraisable: Any) -> None:
        """An interrupt within a finalizer is lost: it is raised again outside."""
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            _thread.interrupt_main()
        else:
            sys.__unraisablehook__(unraisable)
