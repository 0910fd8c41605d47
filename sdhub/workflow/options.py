"""What is asked of `publish` and `plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdhub.core.device import AUTO, vet_word
from sdhub.core.errors import UsageError
from sdhub.evidence.budget import STANDARD, Budget
from sdhub.evidence.sampling import Sampling
from sdhub.evidence.subject import vet_encoder
from sdhub.recipes.adjust import AS_IT_IS, Adjustment

NAMESPACE = "NAMESPACE"  # where none is named


@dataclass(frozen=True)
class Options:
    """How to publish. Raises UsageError for a judge that is none, or a device."""

    namespace: str | None = None
    """User or organization to publish under; None is the token's own."""
    variants: tuple[str, ...] = ()
    """Names of variants; none: each backend's usual one."""
    recipe: Path | None = None
    """A recipe's file, followed to the letter instead of presets."""
    adjustment: Adjustment = AS_IT_IS
    """What is changed of presets."""
    license: str | None = None
    """The source's licence, where it does not state one."""
    private: bool = False
    """Whether to publish into private repositories."""
    allow_public: bool = False
    """Whether a private or gated source may become public."""
    create_pr: bool = False
    """Whether to open pull requests instead of committing."""
    template: str | None = None
    """Names of repositories, such as "{model}-for-intel-{treatment}"."""
    branches: bool = False
    """Whether each backend has one repository with a branch for each variant."""
    collection: bool = True
    """Whether the variants of the source are tied together in a collection on the Hub."""
    sampling: Sampling | None = None
    """How the evidence is drawn, to the letter; None is what suits the checkpoint, within the budget."""
    guidance: float | None = None
    """Guidance scale of that; None is the checkpoint's."""
    budget: Budget = STANDARD
    """What evidence may cost."""
    judge: str | None = None
    """The encoder that tells whether subjects were kept; None is plain pixels, for small pictures."""

    device: str = AUTO
    """Where torch computes: a word of `sdhub.core.device`."""
    runtime_device: str | None = None
    """Where variants are opened whose own runtime has a choice: CPU, GPU or NPU of OpenVINO."""

    def __post_init__(self) -> None:
        vet_word(self.device)
        if self.judge is not None:
            vet_encoder(self.judge)


def options_for(variants: str | Sequence[str], options: Options | None) -> Options:
    """The options with one variant or several. Raises UsageError where both name variants."""
    options = options or Options()
    names = (variants,) if isinstance(variants, str) else tuple(variants)
    if names and options.variants:
        raise UsageError("variants are named twice", hint="name them in the call or in its options")
    return replace(options, variants=names) if names else options
