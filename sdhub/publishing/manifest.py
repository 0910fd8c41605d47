"""The `sdhub.json` of a published variant, read from its repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdhub.core.documents import parse_object
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
