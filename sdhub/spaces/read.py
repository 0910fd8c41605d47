"""What a published variant's repository says that its Space needs to know."""

from __future__ import annotations

from typing import Any

from sdhub.core.errors import SourceError
from sdhub.core.hub import Hub
from sdhub.publishing.manifest import remote_manifest
from sdhub.publishing.repository import MANIFEST
from sdhub.publishing.target import Target
from sdhub.spaces.demo import Shown

LICENSE = ("license", "license_name", "license_link")


def read_shown(repo_id: str, hub: Hub) -> Shown:
    """A variant from its `sdhub.json` and card. Raises HubError, SourceError where it is none of sdhub's."""
    target = Target(repo_id, hub)
    info = target.info()
    if info is None:
        raise SourceError(f"the Hub shows no model {repo_id}", hint="name a published variant's repository")
    manifest = remote_manifest(target)
    if manifest is None:
        raise SourceError(f"{repo_id} has no {MANIFEST}", hint="it was not published by sdhub")
    source = manifest.get("source")
    card: dict[str, Any] = vars(info.card_data) if info.card_data else {}
    license = {name: str(card[name]) for name in LICENSE if isinstance(card.get(name), str)}
    link = license.get("license_link", "")
    if link and "://" not in link:  # a file of the variant's repository
        license["license_link"] = f"{hub.url}/{repo_id}/blob/main/{link}"
    return Shown(
        repo_id,
        str(manifest.get("variant", "")),
        str(source.get("id", repo_id)) if isinstance(source, dict) else repo_id,
        private=bool(info.private),
        license=license,
    )
