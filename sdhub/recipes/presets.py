"""Presets: the recipe of a variant that needs no analysis, spelled out for the components of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sdhub.core import nextsteps
from sdhub.core.errors import RecipeError
from sdhub.core.nearly import meant
from sdhub.recipes.recipe import ComponentRecipe, Float, LowRank, Recipe, Treatment

FLOAT = Float()


@dataclass(frozen=True)
class Preset:
    """`vae` is set apart: its weights are few and its errors go straight into the picture.

    `encoders`: of text encoders, where they are treated otherwise than the denoiser.
    """

    description: str
    weights: Treatment
    vae: Treatment = FLOAT
    encoders: Treatment | None = None

    def component(self, name: str) -> ComponentRecipe:
        """What is done to the component called `name`."""
        if name == "vae":
            return ComponentRecipe(default=self.vae)
        encoder = self.encoders if name.startswith("text_encoder") else None
        return ComponentRecipe(default=encoder or self.weights)


def find(presets: Mapping[str, Preset], variant: str) -> Preset | None:
    """The preset of this name, or one with a low-rank part whose rank the name says: `svdquant-int4-r64`."""
    match = _RANKED.fullmatch(variant)
    base = presets.get(match["base"] if match else variant)
    if base is None or match is None:
        return base
    if not isinstance(base.weights, LowRank):
        return None
    rank = int(match["rank"])
    weights = base.weights.model_copy(update={"rank": rank})
    return replace(
        base, weights=weights, description=f"{base.description} (rank {rank} instead of {base.weights.rank})"
    )


def preset(backend: str, presets: Mapping[str, Preset], variant: str, components: Sequence[str]) -> Recipe:
    """The recipe of a backend's `variant` for the named components (those with weights). Raises RecipeError."""
    known = find(presets, variant)
    if known is None:
        raise RecipeError(
            f"no preset makes {variant}", hint=meant(variant, presets, f"see: {nextsteps.inspect()}")
        )
    return Recipe(name=variant, backend=backend, components={name: known.component(name) for name in components})


_RANKED = re.compile(r"(?P<base>.+)-r(?P<rank>16|64|128)")
_MIXED = re.compile(r"[a-z0-9]+-mixed-(?P<bits>\d{1,2}(?:\.\d{1,2})?)bit(?:-fast)?")


def mixed_bits(variant: str) -> float | None:
    """Bits per weight of a variant such as `coreml-mixed-4.5bit`, None of others."""
    found = _MIXED.fullmatch(variant)
    return float(found["bits"]) if found else None
