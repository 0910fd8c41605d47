"""The hardware of jobs, after the names and prices that huggingface.co had in November 2026.

Here a flavor is a name: every job runs on this machine, and nothing is charged.
"""

from __future__ import annotations

from typing import Any, Final

# name, title, cores, memory, accelerator (model, memory), micro-dollars a minute
_ROWS: Final = (
    ("cpu-basic", "CPU Basic", 2, "16 GB", None, 167),
    ("cpu-upgrade", "CPU Upgrade", 8, "32 GB", None, 500),
    ("cpu-xl", "CPU XL", 16, "124 GB", None, 16_667),
    ("t4-small", "Nvidia T4 - small", 4, "15 GB", ("T4", "16 GB"), 6_667),
    ("l4x1", "1x Nvidia L4", 8, "30 GB", ("L4", "24 GB"), 13_333),
    ("l40sx1", "1x Nvidia L40S", 8, "62 GB", ("L40S", "48 GB"), 30_000),
    ("a100-large", "Nvidia A100 - large", 12, "142 GB", ("A100", "80 GB"), 41_667),
    ("h200", "Nvidia H200", 23, "256 GB", ("H200", "141 GB"), 83_333),
)
FLAVORS: Final = frozenset(row[0] for row in _ROWS)


def listing() -> list[dict[str, Any]]:
    """As `GET /api/jobs/hardware` shows it."""
    return [
        {
            "name": name,
            "prettyName": title,
            "cpu": f"{cores} vCPU",
            "ram": memory,
            "accelerator": _accelerator(*gpu) if gpu else None,
            "unitCostMicroUSD": price,
            "unitCostUSD": price / 1e6,
            "unitLabel": "minute",
        }
        for name, title, cores, memory, gpu, price in _ROWS
    ]


def _accelerator(model: str, memory: str) -> dict[str, str]:
    return {"type": "gpu", "model": model, "quantity": "1", "vram": memory, "manufacturer": "Nvidia"}
