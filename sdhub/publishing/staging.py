"""A branch beside the one that is published to, where a commit waits for its check.

A run that is killed leaves it, and the next one goes on with it. Its name says whether the repository was created
for it: a check that fails then takes the repository with it.
"""

from __future__ import annotations

from sdhub.core.errors import HubError, SdhubError
from sdhub.publishing.target import Target

PREFIX = "sdhub-unchecked"
PREFIX_NEW = "sdhub-unchecked-new"


class Staging:
    """The staging branch of a prepared target."""

    def __init__(self, target: Target) -> None:
        self._of = target
        refs = target.ask("read the branches of", lambda: target.api.list_repo_refs(target.repo_id))
        names = {each.name for each in refs.branches}
        fresh, usual = f"{PREFIX_NEW}-{target.branch}", f"{PREFIX}-{target.branch}"
        if fresh in names and self._untouched():
            target.made_repository = True
        self.branch = fresh if target.made_repository else usual
        self.there = self.branch in names
        self.target = Target(
            target.repo_id,
            endpoint=target.endpoint,
            token=target.token,
            branch=self.branch,
            progress=target.progress,
        )

    def look(self) -> str | None:
        """The head that an earlier run left; None where there is none."""
        if self.there:
            self.target.look()
        return self.target.head

    def open(self) -> None:
        """Anew from the head of the target."""
        if self.there:
            self.remove()
        api, repo_id, head = self._of.api, self._of.repo_id, self._of.head
        self._of.ask(
            "stage in",
            lambda: api.create_branch(repo_id, branch=self.branch, revision=head, exist_ok=True),
        )
        self.there = True
        self.target.look()

    def remove(self, error: BaseException | None = None) -> None:
        """End it; where that fails because of another `error`, that one says so."""
        if not self.there:
            return
        left = f"the branch {self.branch} of {self._of.repo_id} is left: remove it"
        try:
            self._of.ask("tidy up", self._delete)
            self.there = False
        except HubError:
            if isinstance(error, SdhubError):
                error.hint = "; ".join(filter(None, [error.hint, left]))
            else:
                self._of.progress.note(left)

    def _delete(self) -> None:
        from huggingface_hub.errors import RevisionNotFoundError

        try:
            self._of.api.delete_branch(self._of.repo_id, branch=self.branch)
        except RevisionNotFoundError:
            return

    def _untouched(self) -> bool:
        """Whether nothing was committed to `main` since the repository was created."""
        target = self._of
        return len(target.ask("read", lambda: target.api.list_repo_commits(target.repo_id))) == 1
