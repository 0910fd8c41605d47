"""What is asked of `publish`, and what was planned of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdhub.checkpoint.checkpoint import License
from sdhub.core.endpoint import Endpoint
from sdhub.evidence.sampling import Sampling
from sdhub.publishing.privacy import target_private
from sdhub.recipes.adjust import Adjustment
from sdhub.workflow.plan import AS_IT_IS, Plan

NAMESPACE = "NAMESPACE"  # of a dry run that names none


@dataclass(frozen=True)
class Options:
    """How to publish.

    `namespace` None is the token's own; `sampling` None is what suits the checkpoint; `template` names
    repositories; `branches` gives each backend one repository with a branch per variant; `collection` ties the
    variants of the source together on the Hub; `judge` names the encoder that tells whether subjects were kept,
    None is plain pixels for small pictures.
    """

    namespace: str | None = None
    variants: tuple[str, ...] = ()
    recipe: Path | None = None
    adjustment: Adjustment = AS_IT_IS
    license: str | None = None
    private: bool = False
    allow_public: bool = False
    create_pr: bool = False
    template: str | None = None
    branches: bool = False
    collection: bool = True
    sampling: Sampling | None = None
    judge: str | None = None


@dataclass(frozen=True)
class Job:
    """A plan that passed all gates, with the Hub it goes to; nothing is done yet."""

    plan: Plan
    options: Options
    license: License
    hub: Endpoint
    namespace: str
    dry_run: bool = False

    @property
    def private(self) -> bool:
        """Whether the target repositories have to be private."""
        options = self.options
        return target_private(self.plan.checkpoint, private=options.private, allow_public=options.allow_public)

    @property
    def gated(self) -> bool:
        """Whether new target repositories are gated, as the source is; private ones are closed anyway."""
        return self.plan.checkpoint.gated and not self.private
