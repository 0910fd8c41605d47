"""Whether a Hub has a variant already: what its `sdhub.json` says."""

from __future__ import annotations

from sdhub.core.errors import SourceError
from sdhub.core.hub import Hub
from sdhub.publishing.manifest import remote_manifest
from sdhub.publishing.target import Target
from sdhub.watching.orders import Task


def is_published(task: Task, hub: Hub) -> bool:
    """Whether the target holds this recipe of this commit. Raises HubError where the Hub does not say."""
    target = Target(task.target, hub)
    if target.info() is None:
        return False
    try:
        manifest = remote_manifest(target) or {}
    except SourceError:
        return False
    source = manifest.get("source")
    said = source.get("sha") if isinstance(source, dict) else None
    return said == task.sha and manifest.get("recipe_sha256") == task.recipe
