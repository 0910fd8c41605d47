"""What is asked of `publish` and `plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdhub.core.errors import UsageError
from sdhub.evidence.sampling import Sampling
from sdhub.recipes.adjust import AS_IT_IS, Adjustment

NAMESPACE = "NAMESPACE"  # where none is named


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


def options_for(variants: str | Sequence[str], options: Options | None) -> Options:
    """The options with one variant or several. Raises UsageError where both name variants."""
    options = options or Options()
    names = (variants,) if isinstance(variants, str) else tuple(variants)
    if names and options.variants:
        raise UsageError("variants are named twice", hint="name them in the call or in its options")
    return replace(options, variants=names) if names else options
