"""The `sdhub.json` of a published variant, read from its repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdhub.core.documents import parse_object
from sdhub.core.errors import SourceError
from sdhub.core.hub import Hub
from sdhub.core.scratch import temporary
from sdhub.publishing.repository import MANIFEST
from sdhub.publishing.target import Target


def remote_manifest(target: Target) -> dict[str, Any] | None:
    """The document on `main`; None where there is none. Raises HubError, SourceError where it is not JSON."""
    from huggingface_hub.errors import EntryNotFoundError

    with temporary() as cache:

        def download() -> Path | None:
            try:
                return Path(target.api.hf_hub_download(target.repo_id, MANIFEST, cache_dir=cache))
            except EntryNotFoundError:
                return None

        path = target.ask("read", download)
        return parse_object(path.read_bytes(), f"{MANIFEST} of {target.repo_id}") if path else None


def holds(repo_id: str, sha: str | None, recipe: str, hub: Hub) -> bool:
    """Whether a repository holds a recipe (SHA-256) of a source at a commit (None: a local one).

    Raises HubError where the Hub does not say.
    """
    target = Target(repo_id, hub)
    if target.info() is None:
        return False
    try:
        manifest = remote_manifest(target) or {}
    except SourceError:
        return False
    source = manifest.get("source")
    said = source.get("sha") if isinstance(source, dict) else None
    return said == sha and manifest.get("recipe_sha256") == recipe
