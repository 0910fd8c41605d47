"""Publishing a folder as one commit, or as nothing where nothing changed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdhub.errors import HubError, SdhubError
from sdhub.progress import SILENT, Progress
from sdhub.publishing.access import client, is_public_hub, speaking, status_of
from sdhub.publishing.privacy import require_private
from sdhub.publishing.remote import Difference, compare
from sdhub.quiet import quiet

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ATTEMPTS = 5
LARGE = 8 * 2**20


@dataclass(frozen=True)
class Pushed:
    """What came of a push. `commit` is the one that holds the folder; `uploaded_bytes` those of changed files."""

    status: Literal["published", "unchanged", "proposed"]
    commit: str | None
    url: str
    uploaded_bytes: int
    pull_request_url: str | None = None


def push(
    folder: Path,
    repo_id: str,
    *,
    endpoint: str,
    token: str | None,
    private: bool = False,
    create_pr: bool = False,
    message: str,
    known: Mapping[str, str] | None = None,
    progress: Progress = SILENT,
) -> Pushed:
    """Make the repository hold `folder` with one commit (or pull request) of what differs.

    The repository is created if there is none, and removed again if its first commit fails. Files that sdhub
    published before and that the folder no longer has are deleted; files of others stay. A commit of someone
    else in between is noticed, and the comparison made again. `known` are SHA-256 of the folder's files, by path,
    that are known for sure. Raises PrivacyError where `private` is asked for
    and the repository is public, HubError for all that the Hub refuses.
    """
    target = _Target(client(endpoint, token), repo_id, endpoint, token)
    created = target.prepare(private=private)
    before = target.head
    try:
        return _push(target, folder, known or {}, create_pr=create_pr, message=message, progress=progress)
    except BaseException as error:
        if created:
            target.give_up(before, error)
        raise


def vet_target(repo_id: str, *, endpoint: str, token: str | None, private: bool) -> None:
    """Look at a repository before any work: raises PrivacyError where it is public and may not be."""
    from huggingface_hub.errors import RepositoryNotFoundError

    if not private:
        return
    target = _Target(client(endpoint, token), repo_id, endpoint, token)
    with target.speaking("look at"):
        try:
            info = target.api.model_info(repo_id)
        except RepositoryNotFoundError:
            return
    require_private(repo_id, is_private=bool(info.private))


class _Target:
    """A repository on a Hub, and the head that was last looked at."""

    def __init__(self, api: HfApi, repo_id: str, endpoint: str, token: str | None) -> None:
        self.api = api
        self.repo_id = repo_id
        self.endpoint = endpoint.rstrip("/")
        self.token = token
        self.head: str | None = None

    @property
    def url(self) -> str:
        return f"{self.endpoint}/{self.repo_id}"

    def speaking(self, doing: str) -> Any:
        return speaking(f"{doing} {self.repo_id}", endpoint=self.endpoint, token=self.token)

    def prepare(self, *, private: bool) -> bool:
        """Create the repository where it is missing; True if this call did. Reads its head."""
        from huggingface_hub.errors import RepositoryNotFoundError

        created = False
        with self.speaking("create"):
            try:
                info = self.api.model_info(self.repo_id)
            except RepositoryNotFoundError:
                created = self._create(private=private)
                info = self.api.model_info(self.repo_id)
        self.head = info.sha
        if private:
            require_private(self.repo_id, is_private=bool(info.private))
        return created

    def look(self) -> None:
        with self.speaking("read"):
            self.head = self.api.model_info(self.repo_id).sha

    def give_up(self, before: str | None, error: BaseException) -> None:
        """Remove the repository that this call created, unless something was committed to it since."""
        try:
            with self.speaking("remove"):
                if self.api.model_info(self.repo_id).sha == before:
                    self.api.delete_repo(self.repo_id, missing_ok=True)
        except HubError:
            if isinstance(error, SdhubError):
                error.hint = "; ".join(filter(None, [error.hint, f"{self.repo_id} is left empty: remove it"]))

    def _create(self, *, private: bool) -> bool:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self.api.create_repo(self.repo_id, private=private)
        except HfHubHTTPError as error:
            if status_of(error) != 409:
                raise
            return False
        return True


def _push(
    target: _Target,
    folder: Path,
    known: Mapping[str, str],
    *,
    create_pr: bool,
    message: str,
    progress: Progress,
) -> Pushed:
    for _ in range(ATTEMPTS):
        with target.speaking("compare with"):
            difference = compare(target.api, target.repo_id, target.head, folder, known)
        if not difference:
            return Pushed("unchanged", target.head, target.url, 0)
        proposed = _proposed(target, folder, known, message) if create_pr else None
        if proposed:
            return proposed
        pushed = _commit(target, difference, create_pr=create_pr, message=message, progress=progress)
        if pushed:
            return pushed
        target.look()
    raise HubError(
        f"{target.repo_id} was changed by someone else {ATTEMPTS} times in a row", hint="run again later"
    )


def _proposed(target: _Target, folder: Path, known: Mapping[str, str], message: str) -> Pushed | None:
    """An open pull request of the same title that already holds the folder."""
    with target.speaking("read the pull requests of"):
        for each in target.api.get_repo_discussions(target.repo_id):
            if each.is_pull_request and each.status == "open" and each.title == message:
                info = target.api.model_info(target.repo_id, revision=f"refs/pr/{each.num}")
                if not compare(target.api, target.repo_id, info.sha, folder, known):
                    url = f"{target.url}/discussions/{each.num}"
                    return Pushed("proposed", info.sha, target.url, 0, url)
    return None


def _commit(
    target: _Target, difference: Difference, *, create_pr: bool, message: str, progress: Progress
) -> Pushed | None:
    """One commit on top of the head that was compared with; None where the head has moved on."""
    from huggingface_hub import CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    with ExitStack() as stack:
        stack.enter_context(target.speaking("publish to"))
        task = stack.enter_context(progress.task(f"uploading {target.repo_id}", total=difference.bytes, unit="B"))
        stack.enter_context(quiet())  # huggingface_hub draws bars of its own
        additions = _additions(target, difference, stack)
        small = difference.bytes
        for addition in additions:
            size = addition.upload_info.size
            if size >= LARGE or not is_public_hub(target.endpoint):  # one at a time, the client draws no bar
                target.api.preupload_lfs_files(
                    target.repo_id, additions=[addition], create_pr=create_pr, free_memory=False
                )
                task.advance(size)
                small -= size
        try:
            info = target.api.create_commit(
                target.repo_id,
                operations=[*additions, *(CommitOperationDelete(name) for name in difference.gone)],
                commit_message=message,
                create_pr=create_pr,
                parent_commit=target.head,
            )
        except HfHubHTTPError as error:
            if status_of(error) != 412:
                raise
            return None
        task.advance(small)
    status: Literal["published", "proposed"] = "proposed" if create_pr else "published"
    return Pushed(status, info.oid, target.url, difference.bytes, info.pr_url)


def _additions(target: _Target, difference: Difference, stack: ExitStack) -> list[Any]:
    """Paths for huggingface.co, file objects for other servers.

    huggingface_hub sends paths with Xet, which other servers may not have, and file objects over plain HTTP
    (`_upload_files` in its `_commit_api.py`).
    """
    from huggingface_hub import CommitOperationAdd

    plain_http = not is_public_hub(target.endpoint)
    return [
        CommitOperationAdd(name, stack.enter_context(path.open("rb")) if plain_http else path)
        for name, path in difference.changed.items()
    ]
