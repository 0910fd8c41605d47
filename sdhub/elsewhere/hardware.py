"""What a job can run on, and what it costs: the Hub's own list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdhub.core.errors import UnsupportedError, UsageError
from sdhub.core.hub import Hub
from sdhub.core.nearly import meant
from sdhub.core.progress import SILENT, Progress

MEMORY_MARGIN = 1.2  # of a forecast, for the system and what else is resident
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([MGT])i?B", re.IGNORECASE)
_UNIT = {"M": 1e6, "G": 1e9, "T": 1e12}
_MINUTES = {"second": 1 / 60, "minute": 1.0, "hour": 60.0}


@dataclass(frozen=True)
class Flavor:
    """One kind of machine. Sizes in bytes, `disk` None where the Hub does not say; `price` in dollars a minute."""

    name: str
    memory: float
    disk: float | None
    gpu_memory: float
    price: float


@dataclass(frozen=True)
class Need:
    """What some work needs of a machine, in bytes; `gpu`: its memory is that of a GPU too."""

    memory: float
    disk: float
    gpu: bool = False

    def fits(self, flavor: Flavor) -> bool:
        """Whether a machine has it."""
        memory = self.memory * MEMORY_MARGIN
        disk = flavor.disk is None or flavor.disk >= self.disk
        return flavor.memory >= memory and disk and (not self.gpu or flavor.gpu_memory >= memory)


def flavors(hub: Hub, progress: Progress = SILENT) -> list[Flavor]:
    """All kinds of machines that a Hub has for jobs, the cheapest first. Raises HubError."""
    rows = hub.ask("read the list of hardware", hub.api.list_jobs_hardware, progress)
    return sorted(map(_flavor, rows), key=lambda each: (each.price, each.memory))


def choose(known: Sequence[Flavor], need: Need, named: str | None = None) -> Flavor:
    """The flavor that is named, else the cheapest that has what is needed. Raises UsageError, UnsupportedError."""
    if named is not None:
        found = next((each for each in known if each.name == named), None)
        if found is None:
            names = [each.name for each in known]
            raise UsageError(f"the Hub has no hardware called {named[:40]}", hint=meant(named, names))
        return found
    fitting = next((each for each in known if need.fits(each)), None)
    if fitting is None:
        raise UnsupportedError(
            f"no hardware of the Hub has {need.memory * MEMORY_MARGIN / 1e9:.0f} GB of memory"
            f"{' on a GPU' if need.gpu else ''} and {need.disk / 1e9:.0f} GB of disk",
            hint="name one to try all the same: --on hf-jobs:FLAVOR",
        )
    return fitting


def _flavor(row: Any) -> Flavor:
    price = float(row.unit_cost_usd) / _MINUTES.get(str(row.unit_label).lower(), 1.0)
    gpu = row.accelerator
    disk = _bytes(row.ephemeral_storage)
    return Flavor(row.name, _bytes(row.ram) or 0.0, disk, (_bytes(gpu.vram) or 0.0) if gpu else 0.0, price)


def _bytes(text: Any) -> float | None:
    found = _SIZE.search(str(text))
    return float(found[1]) * _UNIT[found[2].upper()] if found else None
