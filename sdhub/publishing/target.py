"""A repository (and branch) on a Hub that is published to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sdhub.core.errors import HubError, SdhubError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.core.retry import status_of
from sdhub.publishing.privacy import require_private

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

T = TypeVar("T")
MAIN = "main"


class Target:
    """The branch of a repository, and its head as last looked at; `made` says what this run created.

    Everything is asked patiently (`Hub.ask`), and every failure is a HubError.
    """

    def __init__(self, repo_id: str, hub: Hub, *, branch: str = MAIN, progress: Progress = SILENT) -> None:
        self.hub = hub
        self.api = hub.api
        self.repo_id = repo_id
        self.branch = branch
        self.progress = progress
        self.head: str | None = None
        self.made_repository = self.made_branch = False
        self._initial: str | None = None
        self._found: str | None = None
        self._tries = 0

    @property
    def url(self) -> str:
        """The repository's page."""
        return f"{self.hub.url}/{self.repo_id}"

    def ask(self, doing: str, act: Callable[[], T]) -> T:
        """`act`, with patience. Raises HubError: "cannot {doing} {repo}: why"."""
        return self.hub.ask(f"{doing} {self.repo_id}", act, self.progress)

    def prepare(self, *, private: bool, gated: bool = False) -> None:
        """Create repository and branch where they are missing, and read the head. Raises PrivacyError.

        A new repository is `gated` where that is asked for; of one that is there it is its owner's business.
        """
        info = self.info()
        if info is None:
            self.ask("create", lambda: self._create(private=private))
            if gated and self.made_repository:
                self.ask("gate", lambda: self.api.update_repo_settings(self.repo_id, gated="auto"))
            info = self.ask("look at", lambda: self.api.model_info(self.repo_id))
        if private:
            require_private(self.repo_id, is_private=bool(info.private))
        self.head = self._initial = info.sha
        if self.branch != MAIN:
            self.ask(f"make the branch {self.branch} of", self._create_branch)
            self.read_head()
        self._found = self.head

    def info(self) -> ModelInfo | None:
        """What the Hub says of the repository; None where it is not there."""
        return self.ask("look at", self._info)

    def peek(self) -> str | None:
        """The head of the branch; None where repository or branch is not there. Changes nothing."""
        from huggingface_hub.errors import RevisionNotFoundError

        def head() -> str | None:
            try:
                return self.api.model_info(self.repo_id, revision=self.branch).sha
            except RevisionNotFoundError:
                return None

        return self.ask("look at", head) if self.info() else None

    def read_head(self) -> None:
        """Read the head again."""
        self.head = self.ask("read", lambda: self.api.model_info(self.repo_id, revision=self.branch)).sha

    def give_up(self, error: BaseException) -> None:
        """Remove what this run created, unless something was committed to it since; `error` is why."""
        if not (self.made_repository or self.made_branch):
            return
        try:
            self.read_head()
            if self.head != self._found:
                return
            if self.made_repository and self._nothing_else():
                self.ask("remove", lambda: self.api.delete_repo(self.repo_id, missing_ok=True))
            elif self.made_branch:
                self.ask("remove", lambda: self.api.delete_branch(self.repo_id, branch=self.branch))
        except HubError:
            if isinstance(error, SdhubError):
                error.hint = "; ".join(filter(None, [error.hint, f"{self.repo_id} is left empty: remove it"]))

    def _info(self) -> ModelInfo | None:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return self.api.model_info(self.repo_id)
        except RepositoryNotFoundError:
            return None

    def _create(self, *, private: bool) -> None:
        """A conflict at a second try is our own first one, whose answer was lost."""
        self._tries += 1
        self.made_repository = self._made(lambda: self.api.create_repo(self.repo_id, private=private))

    def _create_branch(self) -> None:
        self._tries += 1
        start = self._root()
        self.made_branch = self._made(
            lambda: self.api.create_branch(self.repo_id, branch=self.branch, revision=start)
        )

    def _made(self, create: Callable[[], object]) -> bool:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            create()
        except HfHubHTTPError as error:
            if status_of(error) != 409:
                raise
            return self._tries > 1
        return True

    def _root(self) -> str:
        """The first commit of the repository: branches of variants have nothing in common."""
        return str(self.api.list_repo_commits(self.repo_id)[-1].commit_id)

    def _nothing_else(self) -> bool:
        refs = self.ask("read the branches of", lambda: self.api.list_repo_refs(self.repo_id))
        others = [each for each in refs.branches if each.name not in {MAIN, self.branch}]
        main = next((each.target_commit for each in refs.branches if each.name == MAIN), None)
        return not others and main == self._initial
