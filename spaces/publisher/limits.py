"""What a publication may take here: settings of the Space, told on its page."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sdhub.core.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """`source`: bytes of a checkpoint's weights; `memory`: forecast bytes of making a variant; `seconds` of a
    publication; `waiting`: visitors in the queue; `kept`: bytes of the work folder.
    """

    source: float = 12e9
    memory: float = 16e9
    seconds: float = 120 * 60.0
    waiting: int = 8
    kept: float = 20e9

    def __str__(self) -> str:
        return (
            f"This Space takes checkpoints of up to {self.source / 1e9:.0f} GB, makes one publication at a time, "
            f"gives each {self.seconds / 60:.0f} minutes, and lets {self.waiting} wait."
        )


def from_environment() -> Limits:
    """`PUBLISH_GB`, `PUBLISH_MEMORY_GB` (default: what the machine has), `PUBLISH_MINUTES`, `PUBLISH_QUEUE`,
    `CACHE_GB`. Raises UsageError for what is no number above zero.
    """
    usual = Limits()
    return Limits(
        source=_number("PUBLISH_GB", usual.source / 1e9) * 1e9,
        memory=_number("PUBLISH_MEMORY_GB", _memory(usual.memory) / 1e9) * 1e9,
        seconds=_number("PUBLISH_MINUTES", usual.seconds / 60) * 60,
        waiting=int(_number("PUBLISH_QUEUE", usual.waiting)),
        kept=_number("CACHE_GB", usual.kept / 1e9) * 1e9,
    )


def _number(name: str, usual: float) -> float:
    text = os.environ.get(name) or str(usual)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise UsageError(f"{name}={text[:40]!r} is no number above zero", hint="set it anew, or leave it out")
    return value


def _memory(usual: float) -> float:
    """Bytes that this container may have."""
    found = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(float(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such system, or no limit
            continue
    with suppress(ValueError, OSError, AttributeError):  # another system
        found.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    return min(found, default=usual)
