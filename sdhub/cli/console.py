"""All that sdhub prints: data to standard output, talk and progress to standard error."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sdhub.core.progress import Progress, Task

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


def _console(stream: Any) -> Console:
    from rich.console import Console

    # Bound to today's stream: libraries are silenced by swapping sys.stdout and sys.stderr.
    return Console(file=stream, highlight=False, soft_wrap=True)


def emit(document: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def say(text: str) -> None:
    """A line for people, on standard output."""
    sys.stdout.write(visible(text) + "\n")


def talk(text: str) -> None:
    """A line about what is going on, on standard error."""
    sys.stderr.write(visible(text) + "\n")


def asks() -> bool:
    """Whether there is somebody to ask; says so where not."""
    if sys.stdin.isatty():
        return True
    talk("not asking: standard input is no terminal")
    return False


def fail(message: str, hint: str = "") -> None:
    """One line saying what went wrong, and one that says what to do."""
    sys.stderr.write(f"error: {visible(' '.join(message.split()))}\n")
    if hint:
        sys.stderr.write(f"  hint: {visible(' '.join(hint.split()))}\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """A table on standard output; the columns numbered in `right` are set flush right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for number, column in enumerate(columns):
        drawn.add_column(column, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(visible(cell)) for cell in row))
    console = _console(sys.stdout)
    if not console.is_terminal:
        console.width = UNBOUND  # another program reads it: nothing is folded
    console.print(drawn)


def facts(pairs: Mapping[str, str]) -> None:
    """Names and values, aligned."""
    width = max(len(name) for name in pairs)
    for name, value in pairs.items():
        say(f"{name:<{width}}  {value}")


def visible(text: str) -> str:
    """The text with control and direction characters escaped: names come from strangers."""
    return "".join(
        char if char == "\n" or (char.isprintable() and char not in BIDI) else f"\\u{ord(char):04x}"
        for char in text
    )


UNBOUND = 10_000  # columns
COUNT_SECONDS = 5.0
BIDI = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x61C)}


def size(count: float) -> str:
    """Bytes for people: 1.4 GB, 33.5 MB (powers of 1000, as the Hub shows them)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


class Bar(Task):
    """One bar of the console."""

    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def advance(self, amount: float = 1.0) -> None:
        self._bars.advance(self._task, amount)

    def total(self, amount: float) -> None:
        self._bars.update(self._task, total=amount)


class Counts(Task):
    """A bar as lines, `  label … 12/48 steps`, every few seconds: who follows a job's log makes a bar of them."""

    def __init__(self, note: Callable[[str], None], label: str, total: float | None, unit: str) -> None:
        self._note, self._label, self._unit = note, label, unit
        self._count, self._total = 0.0, total
        self.tell()

    def tell(self) -> None:
        """The line of now."""
        whole = f"/{self._total:.0f}" if self._total else ""
        self._note(f"  {self._label} … {self._count:.0f}{whole} {self._unit}".rstrip())
        self._told = time.monotonic()

    def advance(self, amount: float = 1.0) -> None:
        self._count += amount
        if time.monotonic() > self._told + COUNT_SECONDS:
            self.tell()

    def total(self, amount: float) -> None:
        self._total = amount


class ConsoleProgress(Progress):
    """Notes and bars with rate and time left, on standard error; plain lines where it is no terminal."""

    def __init__(self) -> None:
        self._console = _console(sys.stderr)
        self._depth = 0

    def note(self, text: str) -> None:
        self._console.print(visible(text), markup=False)

    @contextmanager
    def task(self, label: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        if not self._depth and os.environ.get("SDHUB_COUNTS"):
            counts = Counts(self.note, label, total, unit)
            yield counts
            counts.tell()
            return
        if self._depth or not self._console.is_terminal:
            if not self._depth:
                self.note(f"  {label} …")
            yield Task()
            return
        self._depth += 1
        try:
            with _bars(self._console, unit) as bars:
                yield Bar(bars, bars.add_task(f"  {visible(label)}", total=total))
        finally:
            self._depth -= 1


def _bars(console: Console, unit: str) -> Bars:
    from rich import progress

    if unit == "B":
        counts: tuple[progress.ProgressColumn, ...] = (progress.DownloadColumn(), progress.TransferSpeedColumn())
    else:
        counts = (progress.MofNCompleteColumn(), progress.TextColumn(unit), _Rate())
    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=24),
        *counts,
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(compact=True),
        console=console,
        transient=False,
    )


def _Rate() -> Any:
    from rich.progress import ProgressColumn
    from rich.progress import Task as Shown
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Shown) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.2f}/s" if speed else "")

    return Rate()
