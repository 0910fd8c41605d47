"""Publishing a folder as one commit, or as nothing where nothing changed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdhub.core.errors import CheckError, HubError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.core.retry import status_of
from sdhub.core.units import MIB
from sdhub.publishing.privacy import require_private
from sdhub.publishing.pulls import Pull, pull_of
from sdhub.publishing.remote import Difference, compare
from sdhub.publishing.staging import Staging
from sdhub.publishing.target import MAIN, Target

Check = Callable[[str], None]
ATTEMPTS = 5
ALONE = 8 * MIB  # from which on a file is uploaded by itself, since the client draws no bar


@dataclass(frozen=True)
class Pushed:
    """What came of a push.

    `commit` is the one that holds the folder; `uploaded_bytes` those of changed files; `changes` says of each file
    that it touched whether it was "added", "changed" or "removed".
    """

    status: Literal["published", "unchanged", "proposed"]
    commit: str | None
    url: str
    uploaded_bytes: int
    pull_request_url: str | None = None
    changes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Preview:
    """What a push would do to each file that it touches ("added", "changed", "removed"), and the bytes to send."""

    url: str
    uploaded_bytes: int
    changes: Mapping[str, str]


def push(
    folder: Path,
    repo_id: str,
    *,
    hub: Hub,
    branch: str = MAIN,
    private: bool = False,
    gated: bool = False,
    create_pr: bool = False,
    message: str,
    known: Mapping[str, str] | None = None,
    check: Check | None = None,
    progress: Progress = SILENT,
) -> Pushed:
    """Make the branch of a repository hold `folder` with one commit (or pull request) of what differs.

    Repository and branch are created where they are missing (`private`, or `gated` behind its owner's terms), and
    removed again if their first commit fails. Files that sdhub published before and that the folder no longer has
    are deleted; files of others stay. A commit of someone else in between is noticed, and the comparison made
    again. What was sent is listed again, and has to be the folder. With `create_pr` there is one open pull request
    per `message`, which is updated. `known` are SHA-256 of the folder's files, by path, that are known for sure.
    `check` is given a commit with the folder before the branch moves, on a branch of its own or as the pull
    request; whatever it raises leaves the branch as it was, removes a repository that was created for it, and
    closes the pull request. A run that was killed in between is gone on with.

    Raises PrivacyError where `private` is asked for and the repository is public, HubError for all that the Hub
    refuses.
    """
    target = Target(repo_id, hub, branch=branch, progress=progress)
    sender = _Sender(target, folder, dict(known or {}), message)
    try:
        target.prepare(private=private, gated=gated)
        if create_pr:
            return sender.propose(check)
        return sender.send_checked(check) if check else sender.send()
    except BaseException as error:
        target.give_up(error)
        raise


def preview(
    folder: Path,
    repo_id: str,
    *,
    hub: Hub,
    branch: str = MAIN,
    known: Mapping[str, str] | None = None,
) -> Preview:
    """What `push` would do now; changes nothing. A repository that cannot be seen is taken for a new one."""
    target = Target(repo_id, hub, branch=branch)
    head = target.peek()
    difference = target.ask("compare with", lambda: compare(target.api, repo_id, head, folder, known or {}))
    return Preview(target.url, difference.bytes, difference.changes)


def vet_target(repo_id: str, *, hub: Hub, private: bool) -> None:
    """Look at a repository before any work: raises PrivacyError where it is public and may not be."""
    if private:
        info = Target(repo_id, hub).info()
        if info is not None:
            require_private(repo_id, is_private=bool(info.private))


class _Sender:
    """A folder on its way to a target, in one commit."""

    def __init__(self, target: Target, folder: Path, known: dict[str, str], message: str) -> None:
        self.target = target
        self.folder = folder
        self.known = known
        self.message = message
        self.sent = 0
        self.changes: Mapping[str, str] = {}
        self.tried = False

    def send(self) -> Pushed:
        """Onto the branch."""
        status: Literal["published", "unchanged"]
        for _ in range(ATTEMPTS):
            difference = self._difference(self.target.head)
            if not difference:  # at a second look: a commit of ours, whose answer was lost
                status = "published" if self.tried else "unchanged"
                return Pushed(status, self.target.head, self.target.url, self.sent, changes=self.changes)
            commit = self._commit(difference, self.target.branch, self.target.head)
            if commit:
                head = self._verified(commit)
                return Pushed("published", head, self.target.url, self.sent, changes=self.changes)
            self.target.read_head()
        raise self._overtaken()

    def send_checked(self, check: Check) -> Pushed:
        """Onto the branch, once a commit beside it passed the check. What the branch holds already is checked."""
        head = self.target.head
        if head and not self._difference(head):
            check(head)
            return Pushed("unchanged", head, self.target.url, 0)
        staging = Staging(self.target)
        try:
            left = staging.read_head()
            if left is None or self._difference(left):
                staging.open()
            staged = _Sender(staging.target, self.folder, self.known, self.message).send()
            check(str(staged.commit))
            return self.send()
        except CheckError as error:
            error.hint = _undone(self.target)
            raise
        finally:
            staging.remove(sys.exc_info()[1])

    def propose(self, check: Check | None = None) -> Pushed:
        """As a pull request: none where the branch holds the folder, else the one of this message."""
        head = self.target.head
        if head and not self._difference(head):
            if check:
                check(head)
            return Pushed("unchanged", head, self.target.url, 0)
        pull = pull_of(self.target, self.message)
        proposed = self._pull(pull)
        if check:
            try:
                check(str(proposed.commit))
            except CheckError as error:
                pull.close(self.target, "It does not pass the check that sdhub makes of what it publishes.")
                error.hint = f"the pull request was closed: {pull.url}"
                raise
        return proposed

    def _pull(self, pull: Pull) -> Pushed:
        for _ in range(ATTEMPTS):
            difference = self._difference(pull.head)
            if not difference:
                return self._proposed(pull, pull.head)
            commit = self._commit(difference, pull.revision, pull.head)
            if commit:
                return self._proposed(pull, self._verified(commit))
            pull = pull.again(self.target)
        raise self._overtaken()

    def _proposed(self, pull: Pull, commit: str) -> Pushed:
        pull.open(self.target)
        return Pushed("proposed", commit, self.target.url, self.sent, pull.url, self.changes)

    def _difference(self, commit: str | None) -> Difference:
        target = self.target
        return target.ask(
            "compare with", lambda: compare(target.api, target.repo_id, commit, self.folder, self.known)
        )

    def _verified(self, commit: str) -> str:
        """The commit, if it holds the folder."""
        if self._difference(commit):
            raise HubError(f"{self.target.repo_id} does not hold what was sent", hint="run again")
        return commit

    def _overtaken(self) -> HubError:
        return HubError(
            f"{self.target.repo_id} was changed by someone else {ATTEMPTS} times in a row", hint="run again later"
        )

    def _commit(self, difference: Difference, revision: str, parent: str | None) -> str | None:
        """One commit on top of the head that was compared with; None where the head has moved on."""
        target, size = self.target, difference.bytes
        with ExitStack() as stack:
            task = stack.enter_context(target.progress.task(f"uploading {target.repo_id}", total=size, unit="B"))
            additions = self._additions(difference, stack)
            small = size
            for addition in additions:
                length = addition.upload_info.size
                if length >= ALONE or not target.hub.public:
                    self._upload(addition, revision)
                    task.advance(length)
                    small -= length
            self.tried, self.sent, self.changes = True, size, difference.changes
            commit = target.ask(
                "publish to", lambda: self._create_commit(additions, difference.gone, revision, parent)
            )
            task.advance(small)
        return commit

    def _upload(self, addition: Any, revision: str) -> None:
        target = self.target
        target.ask(
            "upload to",
            lambda: target.api.preupload_lfs_files(
                target.repo_id, additions=[addition], revision=revision, free_memory=False
            ),
        )

    def _create_commit(
        self, additions: list[Any], gone: tuple[str, ...], revision: str, parent: str | None
    ) -> str | None:
        from huggingface_hub import CommitOperationDelete
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return self.target.api.create_commit(
                self.target.repo_id,
                operations=[*additions, *(CommitOperationDelete(name) for name in gone)],
                commit_message=self.message,
                revision=revision,
                parent_commit=parent,
            ).oid
        except HfHubHTTPError as error:
            if status_of(error) != 412:
                raise
            return None

    def _additions(self, difference: Difference, stack: ExitStack) -> list[Any]:
        """Paths for huggingface.co, file objects for other servers.

        huggingface_hub sends paths with Xet, which other servers may not have, and file objects over plain HTTP
        (`_upload_files` in its `_commit_api.py`).
        """
        from huggingface_hub import CommitOperationAdd

        plain_http = not self.target.hub.public
        additions = [
            CommitOperationAdd(name, stack.enter_context(path.open("rb")) if plain_http else path)
            for name, path in difference.changed.items()
        ]
        self.known |= {each.path_in_repo: each.upload_info.sha256.hex() for each in additions}
        return additions


def _undone(target: Target) -> str:
    """What becomes of a target whose new commit did not pass its check."""
    if target.made_repository:
        return f"nothing was published: {target.repo_id} is removed again"
    return f"nothing was published: {target.branch} of {target.repo_id} is as it was"
