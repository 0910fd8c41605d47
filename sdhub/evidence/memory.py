"""Peak memory of the present process, of the machine or of a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def peak_mib(device: torch.device | None = None) -> float | None:
    """The largest resident set of this process so far, in MiB; None where the system does not tell.

    On a CUDA GPU: the most of its memory that torch had reserved for this process.
    """
    if device is not None and device.type == "cuda":
        import torch

        return round(float(torch.cuda.max_memory_reserved(device)) / 2**20, 1)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    if sys.platform == "darwin":
        import resource

        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
    return None
