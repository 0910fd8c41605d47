"""The privacy gate: what was private or gated does not become public by default."""

from __future__ import annotations

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.core.errors import PrivacyError


def target_private(checkpoint: Checkpoint, *, private: bool = False, allow_public: bool = False) -> bool:
    """Whether the target has to be private: asked for, or the source or one of its LoRAs is private or gated.

    `allow_public` lifts the second reason.
    """
    restricted = (
        checkpoint.private
        or checkpoint.gated
        or any(each.restricted for each in checkpoint.loras)
        or any(each.restricted for each in checkpoint.companions)
    )
    return private or (restricted and not allow_public)


def require_private(repo_id: str, *, is_private: bool) -> None:
    """Raises PrivacyError where a variant that has to be private would go to a public repository."""
    if not is_private:
        raise PrivacyError(
            f"{repo_id} is public, and this variant has to be private",
            hint="make the repository private, choose another one, or allow it with --allow-public",
        )
