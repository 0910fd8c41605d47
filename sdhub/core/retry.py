"""Trying again, where waiting may help: too many requests, a server in trouble, a connection that was lost."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TypeVar

from sdhub.core.disk import causes, full_disk
from sdhub.core.errors import SdhubError
from sdhub.core.progress import SILENT, Progress

T = TypeVar("T")

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_RESET = re.compile(r"\bt\s*=\s*(\d{1,9})\b")  # RateLimit: "api";r=0;t=55 (IETF draft, as the Hub sends it)


@dataclass(frozen=True)
class Patience:
    """How often and how long: `attempts` in all; waits in seconds double from `first` to `longest`.

    Each wait is drawn between half of it and all of it (jitter), so that many clients do not come back at once.
    A server that names a time is obeyed, up to `most` seconds.
    """

    attempts: int = 5
    first: float = 1.0
    longest: float = 30.0
    most: float = 330.0  # the Hub counts requests over five minutes
    draw: Callable[[], float] = field(default=random.random, repr=False)

    def wait(self, attempt: int, error: BaseException) -> float | None:
        """Seconds to wait after failed attempt `attempt` (from 1); None: give up."""
        if attempt >= self.attempts or not passes(error):
            return None
        asked = asked_for(error)
        if asked is not None:
            return float(asked + self.draw()) if asked <= self.most else None
        wait = min(self.longest, self.first * 2 ** (attempt - 1))
        return float(wait * (1 + self.draw()) / 2)


def patiently(
    doing: str, act: Callable[[], T], *, patience: Patience | None = None, progress: Progress = SILENT
) -> T:
    """What `act` returns; called again while what it raises may pass. Says so to `progress`."""
    patience = patience or Patience()
    attempt = 1
    while True:
        try:
            return act()
        except Exception as error:
            wait = patience.wait(attempt, error)
            if wait is None:
                raise
            status = status_of(error)
            progress.note(f"{doing}: {status or 'connection lost'}, retrying in {wait:.0f} s")
            time.sleep(wait)
            attempt += 1


def status_of(error: BaseException) -> int | None:
    """The HTTP status of a failure of huggingface_hub, also where it is wrapped in another one."""
    statuses = (getattr(getattr(each, "response", None), "status_code", None) for each in causes(error))
    return next((each for each in statuses if isinstance(each, int)), None)


def passes(error: BaseException) -> bool:
    """Whether the same request may succeed later: certain statuses, lost connections, answers that were cut."""
    from huggingface_hub import errors

    if isinstance(error, SdhubError) or full_disk(error):  # told of already; and no wait makes room
        return False
    chain = list(causes(error))
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return False
    status = status_of(error)
    if status is not None:
        return status in PASSING or (status < 400 and isinstance(error, ValueError))
    if isinstance(error, errors.LocalEntryNotFoundError):  # of a download, for want of an answer
        return any(passes(each) for each in chain[1:])
    if isinstance(error, (json.JSONDecodeError, ConnectionError, TimeoutError)):
        return True
    transport: type[Exception] = vars(errors)["HTTPError"]  # of httpx in hub 1.x, of httpx2 in 2.x
    if isinstance(error, (transport, getattr(errors, "XetDownloadError", transport))):
        return "Invalid" not in type(error).__name__ and "Unsupported" not in type(error).__name__
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def asked_for(error: BaseException) -> float | None:
    """The seconds that a server asked to wait, in `Retry-After` (seconds or a date) or `RateLimit`."""
    for each in causes(error):
        headers = getattr(getattr(each, "response", None), "headers", None)
        if headers is not None:
            return _seconds(headers.get("Retry-After")) or _reset(headers.get("RateLimit"))
    return None


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    if text.strip().isascii() and text.strip().isdigit():
        return float(text.strip()[:9])
    try:
        moment = parsedate_to_datetime(text)
        return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
    except (ValueError, TypeError):
        return None


def _reset(text: str | None) -> float | None:
    found = _RESET.search(text or "")
    return float(found[1]) if found else None
