"""What backends share whose variants are diffusers folders with quantized components."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from sdhub.backends.base import Backend
from sdhub.backends.folder import recognizes
from sdhub.backends.reasons import reason
from sdhub.backends.streaming import streamable
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.core.errors import UnsupportedError
from sdhub.recipes.presets import Preset, find
from sdhub.recipes.recipe import Recipe


class QuantizedBackend(Backend):
    """`title` names it in messages, `presets` make its variants, `method` is `quant_method` in its configs."""

    title: str
    presets: Mapping[str, Preset]
    method: str
    packages = ("diffusers", "transformers", "torch", "safetensors")
    library = "diffusers"
    checks = "sdhub"
    half_precision = True

    def knows(self, variant: str) -> bool:
        return find(self.presets, variant) is not None

    def describe_preset(self, variant: str) -> str | None:
        found = find(self.presets, variant)
        return found.description if found else None

    def why_not(self, checkpoint: Checkpoint, variant: str) -> str | None:
        if (found := reason(checkpoint)) is not None:
            return found
        if checkpoint.family.name in ("sd3", "sana"):
            return f"{checkpoint.family.title} becomes no {self.title} variant yet"
        if "inpainting" in checkpoint.traits:
            return f"inpainting checkpoints become no {self.title} variants yet"
        return None

    def accept(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        super().accept(checkpoint, recipe)
        for name, component in recipe.components.items():
            if component.token_merging:
                raise UnsupportedError(f"{name}: {self.title} variants do not merge tokens")
        if recipe.sizes or recipe.attention or recipe.chunked or recipe.batch:
            raise UnsupportedError(
                f"{recipe.name}: {self.title} variants have no fixed sizes and no choice of attention"
            )

    def streams(self, checkpoint: Checkpoint, recipe: Recipe) -> bool:
        return streamable(checkpoint, recipe)

    def recognizes(self, folder: Path) -> bool:
        return recognizes(folder, self.method)


def installed(package: str) -> str | None:
    """A distribution with its version, where it is here."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return None
