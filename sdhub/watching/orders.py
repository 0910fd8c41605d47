"""What there is to do: variants of a source at a commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdhub.core.work import digest

Status = Literal["pending", "running", "done", "dispatched", "refused", "failed"]


@dataclass(frozen=True)
class Task:
    """One variant to make: the recipe `recipe` (SHA-256) of `repository` at the commit `sha`, into `target`."""

    repository: str
    sha: str
    recipe: str
    variant: str
    backend: str
    target: str

    @property
    def key(self) -> str:
        """What it is known by wherever it is sent: 32 hex digits of (repository, SHA, recipe, target)."""
        return digest([self.repository, self.sha, self.recipe, self.target])[:32]


@dataclass(frozen=True)
class Order:
    """The tasks of one source at one commit that one backend does; never empty."""

    tasks: tuple[Task, ...]

    @property
    def repository(self) -> str:
        """The source."""
        return self.tasks[0].repository

    @property
    def sha(self) -> str:
        """Its commit."""
        return self.tasks[0].sha

    @property
    def backend(self) -> str:
        """The backend's name."""
        return self.tasks[0].backend

    @property
    def key(self) -> str:
        """32 hex digits that stand for all its tasks."""
        return digest(sorted(task.key for task in self.tasks))[:32]

    @property
    def source(self) -> str:
        """The source with its commit, as commands take it."""
        return f"{self.repository}@{self.sha}"

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the variants."""
        return tuple(task.variant for task in self.tasks)

    def __str__(self) -> str:
        return f"{self.repository} at {self.sha[:12]}: {', '.join(self.variants)}"


@dataclass(frozen=True)
class Outcome:
    """What became of a task; `detail` is an address or a reason."""

    status: Status
    detail: str = ""
