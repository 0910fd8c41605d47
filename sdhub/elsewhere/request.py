"""A command of sdhub that is to run as a job: what it is known by, what it needs, and what it may cost."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdhub.core.errors import UsageError
from sdhub.elsewhere.hardware import Flavor, Need

LABEL = "sdhub"
MARGIN, SPARE_MINUTES = 2.0, 20.0  # of a time limit: twice the forecast, and the installation
_TIMEOUT = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True)
class Request:
    """`words` are the arguments of `sdhub`, `then` those of a second call where the first one succeeds.

    `key` stands for all that the result depends on: jobs of one key do the same. `extra` is that of sdhub which
    brings the libraries. `source` is the repository that it reads and its commit, None for what is built in.
    `files` are those of this machine that it reads, by the path at which the words name them.
    """

    key: str
    words: tuple[str, ...]
    extra: str
    minutes: float
    need: Need
    labels: Mapping[str, str]
    source: tuple[str, str] | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    then: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """What runs, where sdhub is installed."""
        calls = [["sdhub", *self.words], *([["sdhub", *self.then]] if self.then else [])]
        return calls[0] if len(calls) == 1 else ["sh", "-c", " && ".join(map(shlex.join, calls))]

    @property
    def all_labels(self) -> dict[str, str]:
        """What the job is found by again, and what people see of it."""
        told = {LABEL: self.key, f"{LABEL}-minutes": f"{self.minutes:.1f}"}
        return told | {f"{LABEL}-{name}": label(value) for name, value in self.labels.items()}


@dataclass(frozen=True)
class Price:
    """What a request may cost: forecast minutes on a flavor, and the time limit in seconds."""

    flavor: Flavor
    minutes: float
    seconds: int

    @property
    def dollars(self) -> float:
        """By the forecast."""
        return self.minutes * self.flavor.price

    @property
    def most(self) -> float:
        """Dollars, where it takes all its time."""
        return self.seconds / 60 * self.flavor.price


def limit(minutes: float, given: int | None) -> int:
    """The time limit in seconds of what takes `minutes` by forecast."""
    return given if given is not None else int((MARGIN * minutes + SPARE_MINUTES) * 60)


def parse_timeout(text: str) -> int:
    """Seconds that "90m", "6h" or "1d" say. Raises UsageError."""
    found = _TIMEOUT.fullmatch(text.strip())
    seconds = int(float(found[1]) * _SECONDS[found[2]]) if found else 0
    if not 0 < seconds <= 30 * 86_400:
        raise UsageError(f"a time limit of {text[:20]!r} means nothing", hint="give 90m, 6h or 1d")
    return seconds


def label(text: str) -> str:
    """A text as labels may hold it."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text.replace("/", "--"))[:100]
