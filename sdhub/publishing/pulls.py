"""Pull requests: one open one per title, which is updated rather than repeated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdhub.publishing.target import Target


@dataclass(frozen=True)
class Pull:
    """An open pull request: its number, head, page, and whether it is a draft still."""

    number: int
    head: str
    url: str
    draft: bool

    @property
    def revision(self) -> str:
        """The reference that commits go to."""
        return f"refs/pr/{self.number}"

    def again(self, target: Target) -> Pull:
        """With the head of today."""
        return replace(self, head=_head(target, self.number))

    def open(self, target: Target) -> None:
        """No draft any more: its commit is there."""
        if self.draft:
            target.ask(
                "open the pull request of",
                lambda: target.api.change_discussion_status(target.repo_id, self.number, "open"),
            )

    def close(self, target: Target, why: str) -> None:
        """Closed, with a word on why."""
        target.ask(
            "close the pull request of",
            lambda: target.api.change_discussion_status(target.repo_id, self.number, "closed", comment=why),
        )


def pull_of(target: Target, title: str) -> Pull:
    """The open pull request of the user with this title, or a new one without commits."""
    return _find(target, title) or target.ask("propose to", lambda: _create(target, title))


def _create(target: Target, title: str) -> Pull:
    """Looks first: the answer to an earlier try may have been lost."""
    found = _find(target, title)
    if found:
        return found
    number = target.api.create_pull_request(target.repo_id, title=title).num
    return _pull(target, number, draft=True)


def _find(target: Target, title: str) -> Pull | None:
    def fetch() -> Pull | None:
        me = str(target.api.whoami()["name"])
        for each in target.api.get_repo_discussions(target.repo_id):
            mine = each.is_pull_request and each.author == me and each.title == title
            if mine and each.status in {"open", "draft"}:
                return _pull(target, each.num, draft=each.status == "draft")
        return None

    return target.ask("read the pull requests of", fetch)


def _pull(target: Target, number: int, *, draft: bool) -> Pull:
    url = f"{target.url}/discussions/{number}"
    return Pull(number, _head(target, number), url, draft)


def _head(target: Target, number: int) -> str:
    info = target.ask("read", lambda: target.api.model_info(target.repo_id, revision=f"refs/pr/{number}"))
    return str(info.sha)
