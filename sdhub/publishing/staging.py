"""A branch beside the one that is published to, where a commit waits for its check.

Each run has one of its own: its name says whether the repository was created for it (a check that fails then takes
the repository with it), when the run began, and which run it is. A lock in the home of the run says whether it
still goes. What a killed run of this home left, the next one goes on with; what one of another machine left goes
when it is too old to be in use.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sdhub.core.errors import HubError, SdhubError
from sdhub.core.work import home
from sdhub.publishing.target import Target

PREFIX = "sdhub-unchecked"
PREFIX_NEW = "sdhub-unchecked-new"
ABANDONED_SECONDS = 3 * 86_400
_TOKEN = re.compile(r"[0-9a-f]{16}")  # seconds since 1970, and eight digits by chance


class Staging:
    """The staging branch of a prepared target; one that a killed run left, where there is one."""

    def __init__(self, target: Target) -> None:
        self._of = target
        refs = target.ask("read the branches of", lambda: target.api.list_repo_refs(target.repo_id))
        left = sorted(found for each in refs.branches if (found := _read(each.name, target.branch)))
        mine = next(_dead(left), None)
        self.there = mine is not None
        if mine and mine[0] == PREFIX_NEW and self._untouched():
            target.made_repository = True
        if mine:
            prefix, token, self._lock = mine
        else:
            prefix = PREFIX_NEW if target.made_repository else PREFIX
            token = f"{int(time.time()):08x}{secrets.token_hex(4)}"
            self._lock = _lock(token)
            self._lock.acquire()
        self.branch = _name(prefix, target.branch, token)
        self.target = Target(target.repo_id, target.hub, branch=self.branch, progress=target.progress)
        self._sweep(left, token)

    def read_head(self) -> str | None:
        """The head that an earlier run left; None where there is none."""
        if self.there:
            self.target.read_head()
        return self.target.head

    def open(self) -> None:
        """Anew from the head of the target."""
        if self.there:
            self._of.ask("tidy up", lambda: self._delete(self.branch))
        api, repo_id, head = self._of.api, self._of.repo_id, self._of.head
        self.there = True
        self._of.ask(
            "stage in",
            lambda: api.create_branch(repo_id, branch=self.branch, revision=head, exist_ok=True),
        )
        self.target.read_head()

    def remove(self, error: BaseException | None = None) -> None:
        """End it; where that fails because of another `error`, that one says so."""
        left = f"the branch {self.branch} of {self._of.repo_id} is left: remove it"
        try:
            if self.there:
                self._of.ask("tidy up", lambda: self._delete(self.branch))
            self.there = False
            Path(self._lock.lock_file).unlink(missing_ok=True)
        except HubError:
            if isinstance(error, SdhubError):
                error.hint = "; ".join(filter(None, [error.hint, left]))
            else:
                self._of.progress.note(left)
        finally:
            self._lock.release()

    def _sweep(self, left: list[tuple[str, str]], mine: str) -> None:
        """Remove what runs left so long ago that none can be at it any more."""
        for prefix, token in left:
            if token != mine and time.time() - int(token[:8], 16) > ABANDONED_SECONDS:
                branch = _name(prefix, self._of.branch, token)
                with suppress(HubError):  # it is in nobody's way
                    self._of.ask("tidy up", lambda branch=branch: self._delete(branch))  # type: ignore[misc]

    def _delete(self, branch: str) -> None:
        from huggingface_hub.errors import RevisionNotFoundError

        with suppress(RevisionNotFoundError):
            self._of.api.delete_branch(self._of.repo_id, branch=branch)

    def _untouched(self) -> bool:
        """Whether nothing was committed to `main` since the repository was created."""
        target = self._of
        return len(target.ask("read", lambda: target.api.list_repo_commits(target.repo_id))) == 1


def _name(prefix: str, branch: str, token: str) -> str:
    return f"{prefix}-{branch}-{token}"


def _read(name: str, branch: str) -> tuple[str, str] | None:
    """Prefix and token of a staging branch for `branch`; None for any other branch."""
    head, _, token = name.rpartition("-")
    prefix = next((each for each in (PREFIX, PREFIX_NEW) if head == f"{each}-{branch}"), None)
    return (prefix, token) if prefix and _TOKEN.fullmatch(token) else None


def _lock(token: str) -> FileLock:
    folder = home() / "staging"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{token}.lock", timeout=0)


def _dead(left: list[tuple[str, str]]) -> Iterator[tuple[str, str, FileLock]]:
    """Those of this home whose run has ended; their lock is held from here on."""
    for prefix, token in left:
        lock = _lock(token)
        path = Path(lock.lock_file)
        if not path.exists():  # of another machine
            continue
        try:
            lock.acquire()
        except Timeout:
            continue
        if path.exists():
            yield prefix, token, lock
        else:  # it ended in this moment, in good order
            lock.release()
            path.unlink(missing_ok=True)
