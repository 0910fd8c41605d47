"""Presets: the recipe of a variant that needs no analysis, spelled out for the components of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdhub.errors import RecipeError
from sdhub.recipes.recipe import Affine, Component, Float, Recipe, Treatment


@dataclass(frozen=True)
class Preset:
    """`vae` is set apart: its weights are few and its errors go straight into the picture."""

    backend: str
    summary: str
    weights: Treatment
    vae: Treatment


PRESETS = {
    "openvino-fp16": Preset(
        "openvino",
        "16-bit weights; as good as the original, half the size of 32 bits",
        weights=Float(),
        vae=Float(),
    ),
    "openvino-int8": Preset(
        "openvino",
        "8-bit weights, a scale and zero point per output channel; float activations; the VAE in 16 bit",
        weights=Affine(bits=8),
        vae=Float(),
    ),
}


def preset(variant: str, components: Sequence[str]) -> Recipe:
    """The recipe of `variant` for the named components (those with weights). Raises RecipeError."""
    known = PRESETS.get(variant)
    if known is None:
        raise RecipeError(f"no preset makes {variant}", hint=f"presets: {', '.join(PRESETS)}")
    return Recipe(
        name=variant,
        backend=known.backend,
        components={name: Component(default=known.vae if name == "vae" else known.weights) for name in components},
    )
