"""Whether a Hub has a variant already: what its `sdhub.json` says."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sdhub.checkpoint.documents import parse_object
from sdhub.endpoint import Endpoint
from sdhub.errors import SdhubError
from sdhub.publishing.repository import MANIFEST
from sdhub.publishing.target import Target
from sdhub.watching.orders import Task


def is_published(task: Task, hub: Endpoint) -> bool:
    """Whether the target holds this recipe of this commit. Raises HubError where the Hub does not say."""
    target = Target(task.target, endpoint=hub.url, token=hub.token)
    if target.info() is None:
        return False
    with tempfile.TemporaryDirectory() as cache:
        path = target.ask("read", lambda: _manifest(target, Path(cache)))
        if path is None:
            return False
        try:
            manifest = parse_object(path.read_bytes(), MANIFEST)
        except SdhubError:
            return False
    source = manifest.get("source")
    said = source.get("sha") if isinstance(source, dict) else None
    return said == task.sha and manifest.get("recipe_sha256") == task.recipe


def _manifest(target: Target, cache: Path) -> Path | None:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(target.api.hf_hub_download(target.repo_id, MANIFEST, cache_dir=cache))
    except EntryNotFoundError:
        return None
