"""Which checkpoints to watch, and listing them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import islice

from sdhub.core.errors import UsageError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.core.work import digest

MOST = 10_000  # listed at a time
OVERLAP = timedelta(hours=1)  # the Hub's lists may lag behind
OURS = "sdhub"  # the tag that published variants carry
_SPAN = re.compile(r"(\d{1,5})([hdw])")
_HOURS = {"h": 1, "d": 24, "w": 168}


@dataclass(frozen=True)
class Query:
    """What to watch: models of any of `authors` with all of `filters` (tags) and more than `likes_over` likes,
    changed after `since`. Raises UsageError where nothing narrows it down.
    """

    authors: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    likes_over: int | None = None
    since: datetime | None = None

    def __post_init__(self) -> None:
        if not (self.authors or self.filters or self.likes_over is not None):
            raise UsageError("the whole Hub is too much to watch", hint="give --author, --filter or --likes-over")

    @property
    def key(self) -> str:
        """What its progress is kept under."""
        return digest([self.authors, self.filters])


@dataclass(frozen=True)
class Found:
    """A repository as a list shows it."""

    repository: str
    sha: str
    changed: datetime


def parse_since(text: str) -> datetime:
    """A moment: `2026-11-01`, `2026-11-01T12:00:00Z`, or a span before now such as `12h`, `7d`, `4w`.

    Raises UsageError.
    """
    span = _SPAN.fullmatch(text.strip())
    if span:
        return datetime.now(timezone.utc) - timedelta(hours=int(span[1]) * _HOURS[span[2]])
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        raise UsageError(f"{text[:40]!r} is no moment", hint="such as 2026-11-01, 12h, 7d or 4w") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def listed(query: Query, hub: Hub, after: datetime | None, progress: Progress = SILENT) -> list[Found]:
    """What the query finds on a Hub that changed after `after`, oldest change first; variants of ours left out.

    Raises HubError.
    """
    found: dict[str, Found] = {}
    for author in query.authors or (None,):
        for each in _of(query, hub, author, after, progress):
            found[each.repository] = each
    return sorted(found.values(), key=lambda each: (each.changed, each.repository))


def _moment(changed: datetime | None) -> datetime:
    moment = changed or datetime.now(timezone.utc)
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _of(query: Query, hub: Hub, author: str | None, after: datetime | None, progress: Progress) -> list[Found]:
    api = hub.api
    limits = [each for each in (query.since, after - OVERLAP if after else None) if each]
    oldest = max(limits, default=datetime.min.replace(tzinfo=timezone.utc))

    def pages() -> Iterator[Found]:
        rows = api.list_models(
            author=author,
            filter=list(query.filters) or None,
            sort="last_modified" if query.likes_over is None else "likes",
            limit=MOST,
            expand=["sha", "lastModified", "likes", "tags"],
        )
        for row in islice(rows, MOST):
            try:
                changed = _moment(row.last_modified)
                if query.likes_over is not None and (row.likes or 0) <= query.likes_over:
                    return
                if query.likes_over is None and changed < oldest:
                    return
                wanted = row.sha and changed >= oldest and OURS not in (row.tags or ())
                each = Found(str(row.id), str(row.sha), changed)
            except (AttributeError, TypeError, ValueError, OverflowError) as error:  # one odd row stops no other
                progress.note(f"a model of the list cannot be read ({type(error).__name__})")
                continue
            if wanted:
                yield each

    return hub.ask("list models", lambda: list(pages()), progress)
