"""The time, as the Hub writes it."""

from __future__ import annotations

from datetime import datetime, timezone


def now() -> str:
    """UTC in ISO 8601 with milliseconds, as in `2026-11-21T07:00:00.000Z`."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
