"""What the Hub refuses, as HTTP: `Refusal` is raised anywhere below a request and becomes the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class StartError(Exception):
    """The server cannot start (port taken, users file broken, root not writable); one line says why."""


class Refusal(Exception):
    """An HTTP error answer.

    `code` is the Hub's `X-Error-Code` (RepoNotFound, RevisionNotFound, EntryNotFound, GatedRepo), `headers`
    are added to the answer, `body` to its JSON document beside `error`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "",
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.body = dict(body or {})


def bad_request(message: str) -> Refusal:
    """400: the request means nothing or is not allowed to mean what it says."""
    return Refusal(400, message)


def no_revision(revision: str) -> Refusal:
    """404 for a branch, tag, commit or pull request that is not there."""
    return Refusal(404, f"Invalid rev id: {revision[:100]}", code="RevisionNotFound")


def no_entry(message: str = "Entry not found", *, commit: str = "") -> Refusal:
    """404 for a file. With `commit`, clients remember that it does not exist in that commit."""
    return Refusal(404, message, code="EntryNotFound", headers={"X-Repo-Commit": commit} if commit else {})
