"""What came of a publish: plain data for the console, for JSON, and for the table at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdhub.checkpoint.checkpoint import Checkpoint, License
from sdhub.core.errors import SdhubError

EVIDENCE = ("psnr_db", "ssim", "latent_psnr_db", "device", "precision", "kernels")


@dataclass(frozen=True)
class Published:
    """What became of one variant: "published", "unchanged", "proposed", "dry-run" or "failed" with the reason.

    `files` are the repository's by path, in bytes; `changes` says of each that a commit would touch whether it is
    "added", "changed" or "removed". `branch` None is `main`.
    """

    name: str
    repo: str
    recipe_sha256: str
    status: str
    branch: str | None = None
    reason: str | None = None
    url: str | None = None
    commit: str | None = None
    pull_request: str | None = None
    uploaded_bytes: int = 0
    evidence: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[Mapping[str, Any], ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)
    changes: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    error: SdhubError | None = None

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        evidence = self.evidence
        shown = {name: evidence.get(name) for name in EVIDENCE}
        shown["latency_ratio"] = (evidence.get("latency") or {}).get("ratio")
        shown["peak_mib"] = evidence.get("peak_mib")
        return {
            "name": self.name,
            "repo": self.repo,
            "branch": self.branch,
            "url": self.url,
            "commit": self.commit,
            "pull_request": self.pull_request,
            "status": self.status,
            "reason": self.reason,
            "bytes": evidence.get("bytes"),
            "base_bytes": evidence.get("base_bytes"),
            "uploaded_bytes": self.uploaded_bytes,
            "recipe_sha256": self.recipe_sha256,
            "evidence": shown if evidence else None,
            "packages": [dict(each) for each in self.packages],
            "files": [{"path": path, "bytes": size} for path, size in self.files.items()],
            "changes": dict(self.changes),
        }


@dataclass(frozen=True)
class Report:
    """The result of `publish`. `sha` is the source's commit, or the fingerprint of a local one's bytes."""

    checkpoint: Checkpoint
    sha: str
    license: License
    variants: tuple[Published, ...]
    collection: str | None = None

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "source": {
                "id": self.checkpoint.id,
                "sha": self.sha,
                "family": self.checkpoint.family.name,
                "license": self.license.id,
            },
            "variants": [each.document() for each in self.variants],
            "collection": self.collection,
        }
