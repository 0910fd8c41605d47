"""Orders sent to GitHub Actions: as the matrix of the running workflow, or as `repository_dispatch` events.

Inside a workflow `GITHUB_OUTPUT` is set, and the orders become the output `matrix`; elsewhere each order is one
event `sdhub-publish`, for which `GITHUB_TOKEN` (or `GH_TOKEN`) needs write access to the repository's contents.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sdhub.core.errors import HubError, UsageError
from sdhub.core.progress import SILENT, Progress
from sdhub.watching.dispatch import Dispatch, one_by_one
from sdhub.watching.orders import Order, Outcome
from sdhub.workflow.options import Options

MOST = 256  # jobs of one matrix
EVENT = "sdhub-publish"
API = "https://api.github.com"
SECONDS = 30
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9._-]{1,100}")


def github(options: Options, repository: str | None, progress: Progress = SILENT) -> Dispatch:
    """The dispatcher that fits where this runs. Raises UsageError where something is missing."""
    if options.recipe:
        raise UsageError("a recipe file is not there where a workflow runs", hint="watch for presets: --variant")
    output = os.environ.get("GITHUB_OUTPUT")
    if output and repository is None:
        return Matrix(Path(output))
    name = repository or os.environ.get("GITHUB_REPOSITORY") or ""
    if not _REPOSITORY.fullmatch(name):
        raise UsageError(f"{name[:80]!r} is no repository on GitHub", hint="give --github OWNER/NAME")
    token = os.environ.get("GITHUB_TOKEN") or os.environ.get("GH_TOKEN")
    if not token:
        raise UsageError("there is no token for GitHub", hint="set GITHUB_TOKEN")
    return Events(name, token, os.environ.get("GITHUB_API_URL") or API, progress)


def entry(order: Order) -> dict[str, str]:
    """An order as a job of a matrix, or the payload of an event."""
    return {
        "source": order.source,
        "backend": order.backend,
        "variants": " ".join(order.variants),
        "key": order.key,
    }


@dataclass(frozen=True)
class Matrix:
    """Appends `matrix={"include": […]}` and `count=N` to the file `output`."""

    output: Path

    def __call__(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Sequence[Outcome]]]:
        """Write all orders, then say that they are sent."""
        drawn = list(islice(orders, MOST))
        matrix = json.dumps({"include": [entry(each) for each in drawn]}, separators=(",", ":"))
        with self.output.open("a", encoding="utf-8") as stream:
            stream.write(f"matrix={matrix}\ncount={len(drawn)}\n")
        for order in drawn:
            yield order, [Outcome("dispatched", "a job of this workflow")] * len(order.tasks)


@dataclass(frozen=True)
class Events:
    """Sends `repository_dispatch` events to a repository on GitHub."""

    repository: str
    token: str = field(repr=False)
    api: str = API
    progress: Progress = SILENT

    def __call__(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Sequence[Outcome]]]:
        """Send each order."""
        return one_by_one(orders, self._send)

    def _send(self, order: Order) -> list[Outcome]:
        self._post({"event_type": EVENT, "client_payload": entry(order)})
        self.progress.note(f"{order}: sent to {self.repository}")
        return [Outcome("dispatched", f"https://github.com/{self.repository}/actions")] * len(order.tasks)

    def _post(self, document: Mapping[str, Any]) -> None:
        from urllib.error import HTTPError
        from urllib.request import Request, urlopen

        if urlsplit(self.api).scheme not in {"http", "https"}:
            raise UsageError("GITHUB_API_URL is no address", hint=f"usually {API}")
        request = Request(  # noqa: S310 — checked above
            f"{self.api.rstrip('/')}/repos/{self.repository}/dispatches",
            json.dumps(document).encode(),
            {
                "Authorization": f"Bearer {self.token}",
                "Accept": "application/vnd.github+json",
                "X-GitHub-Api-Version": "2022-11-28",
                "Content-Type": "application/json",
                "User-Agent": "sdhub",
            },
        )
        try:
            with urlopen(request, timeout=SECONDS):  # noqa: S310
                return
        except HTTPError as error:
            hint = "the token needs write access to contents" if error.code in {401, 403, 404} else ""
            raise HubError(f"GitHub answered {error.code} for {self.repository}", hint=hint) from None
        except OSError as error:
            raise HubError(
                f"GitHub could not be reached ({type(error).__name__})", hint="run again later"
            ) from None
