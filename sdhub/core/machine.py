"""What this machine has: free memory, and its speed, measured once, on which forecasts of minutes stand."""

from __future__ import annotations

import json
import os
import platform
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from sdhub.core.work import home, write_atomic

SIDE = 1024  # of the matrices that are multiplied
RUNS, SECONDS = 8, 2.0  # at most; the best run counts, as others may use the machine too


def cpu() -> str:
    """The processor's name, without names of hosts or people."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def free_memory() -> float | None:
    """Bytes of memory that programs can have now; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return None


@cache
def operations_per_second() -> float:
    """Multiplications and additions a second in a product of large float32 matrices, on all cores.

    Kept as `machine.json` in sdhub's cache folder, so that a plan stays what it was; measured anew without it.
    """
    file, this = home() / "machine.json", {"cpu": cpu(), "cores": os.cpu_count()}
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        rate = float(kept["operations_per_second"])
        if {name: kept[name] for name in this} == this and rate > 0:
            return rate
    rate = _measured()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps({**this, "operations_per_second": round(rate)}).encode())
    return rate


def _measured() -> float:
    import numpy as np

    matrix = np.ones((SIDE, SIDE), np.float32)
    best, begun = float("inf"), time.perf_counter()
    for _ in range(RUNS):
        started = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - started)
        if time.perf_counter() - begun > SECONDS:
            break
    return float(2 * SIDE**3 / best)
