"""Whether a Hub has the variant of a task already."""

from __future__ import annotations

from sdhub.core.hub import Hub
from sdhub.publishing.manifest import holds
from sdhub.watching.orders import Task


def is_published(task: Task, hub: Hub) -> bool:
    """Whether the target holds this recipe of this commit. Raises HubError where the Hub does not say."""
    return holds(task.target, task.sha, task.recipe, hub)
