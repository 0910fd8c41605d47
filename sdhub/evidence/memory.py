"""Peak memory of the present process."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_mib() -> float | None:
    """The largest resident set of this process so far, in MiB; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    if sys.platform == "darwin":
        import resource

        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
    return None
