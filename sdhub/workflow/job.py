"""What was planned and passed all gates."""

from __future__ import annotations

from dataclasses import dataclass

from sdhub.checkpoint.checkpoint import License
from sdhub.core.hub import Hub
from sdhub.publishing.privacy import target_private
from sdhub.workflow.options import Options
from sdhub.workflow.plan import Plan


@dataclass(frozen=True)
class Job:
    """A plan that passed all gates, with the Hubs it comes from and goes to; nothing is done yet."""

    plan: Plan
    options: Options
    license: License
    source: Hub
    hub: Hub
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
