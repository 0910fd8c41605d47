"""What sdhub's jobs were forecast to cost, and what they have cost by the Hub's list of prices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdhub.elsewhere.engine import stage
from sdhub.elsewhere.hardware import Flavor
from sdhub.elsewhere.request import LABEL

if TYPE_CHECKING:
    from huggingface_hub import JobInfo


@dataclass(frozen=True)
class Entry:
    """A job with what was forecast of it and what it ran. `price` in dollars a minute, None: it is not known."""

    job: JobInfo
    forecast_minutes: float
    minutes: float
    price: float | None

    @property
    def forecast_dollars(self) -> float:
        """By the forecast."""
        return self.forecast_minutes * (self.price or 0.0)

    @property
    def dollars(self) -> float:
        """By what it ran."""
        return self.minutes * (self.price or 0.0)

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        labels = self.job.labels or {}
        return {
            "id": self.job.id,
            "url": self.job.url,
            "stage": stage(self.job),
            "verb": labels.get(f"{LABEL}-verb"),
            "source": (labels.get(f"{LABEL}-source") or "").replace("--", "/", 1),
            "variant": labels.get(f"{LABEL}-variant"),
            "flavor": self.job.flavor,
            "forecast_minutes": self.forecast_minutes,
            "minutes": round(self.minutes, 1),
            "forecast_dollars": round(self.forecast_dollars, 4),
            "dollars": round(self.dollars, 4),
        }


def ledger(jobs: Iterable[JobInfo], flavors: Sequence[Flavor]) -> list[Entry]:
    """An entry for each job; what is paid for is the time that it ran."""
    prices = {each.name: each.price for each in flavors}
    found = []
    for job in jobs:
        ran = float((job.durations and job.durations.running_secs) or 0) / 60
        forecast = _number((job.labels or {}).get(f"{LABEL}-minutes"))
        found.append(Entry(job, forecast, ran, prices.get(str(job.flavor))))
    return found


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:  # a label that is not sdhub's
        return 0.0
