"""Presets: the recipe of a variant that needs no analysis, spelled out for the components of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdhub import nextsteps
from sdhub.errors import RecipeError
from sdhub.nearly import meant
from sdhub.recipes.recipe import Affine, Component, Float, LowRank, Palette, Recipe, Treatment

FLOAT = Float()


@dataclass(frozen=True)
class Preset:
    """`vae` is set apart: its weights are few and its errors go straight into the picture.

    `encoders`: of text encoders, where they are treated otherwise than the denoiser.
    """

    backend: str
    summary: str
    weights: Treatment
    vae: Treatment = FLOAT
    encoders: Treatment | None = None

    def component(self, name: str) -> Component:
        """What is done to the component called `name`."""
        if name == "vae":
            return Component(default=self.vae)
        encoder = self.encoders if name.startswith("text_encoder") else None
        return Component(default=encoder or self.weights)


_COMPENSATED: Any = {"rounding": "compensated"}
_INT4 = LowRank(rank=32, residual="int4", group_size=64, activations="int4", smoothing=True, **_COMPENSATED)
_NVFP4 = LowRank(rank=32, residual="nvfp4", group_size=16, activations="nvfp4", smoothing=True, **_COMPENSATED)

PRESETS = {
    "coreml-fp16": Preset("coreml", "16-bit weights; as good as the original", weights=Float()),
    "coreml-8bit": Preset("coreml", "palettes of 256 values", weights=Palette(bits=8, **_COMPENSATED)),
    "coreml-6bit": Preset(
        "coreml",
        "palettes of 64 values, rounded to compensate; the VAE in 16 bit",
        weights=Palette(bits=6, **_COMPENSATED),
    ),
    "coreml-4bit": Preset(
        "coreml",
        "palettes of 16 values, rounded to compensate; text encoders in 6 bit, the VAE in 16 bit",
        weights=Palette(bits=4, **_COMPENSATED),
        encoders=Palette(bits=6, **_COMPENSATED),
    ),
    "coreml-4bit-grouped": Preset(
        "coreml",
        "palettes of 16 values for every 16 output channels, rounded to compensate; text encoders in 6 bit, "
        "the VAE in 16 bit",
        weights=Palette(bits=4, group_size=16, **_COMPENSATED),
        encoders=Palette(bits=6, **_COMPENSATED),
    ),
    "openvino-fp16": Preset(
        "openvino",
        "16-bit weights; as good as the original, half the size of 32 bits",
        weights=Float(),
    ),
    "openvino-int8": Preset(
        "openvino",
        "8-bit weights, a scale and zero point per output channel; float activations; the VAE in 16 bit",
        weights=Affine(bits=8),
    ),
    "openvino-int8-hybrid": Preset(
        "openvino",
        "8-bit weights; convolutions compute in 8 bits; the VAE in 16 bit",
        weights=Affine(bits=8, activations="hybrid", spared=0.03),
        encoders=Affine(bits=8),
    ),
    "openvino-int8-full": Preset(
        "openvino",
        "8-bit weights; all layers of the denoiser compute in 8 bits, but for the few that would lose most; "
        "the VAE in 16 bit",
        weights=Affine(bits=8, activations="int8", smoothing=0.5, spared=0.03),
        encoders=Affine(bits=8),
    ),
    "openvino-int4": Preset(
        "openvino",
        "4-bit weights in groups of 64 inputs, rounded to compensate, 8-bit ones where the denoiser loses most; "
        "text encoders in 8 bit, the VAE in 16 bit",
        weights=Affine(bits=4, group_size=64, spared=0.1, **_COMPENSATED),
        encoders=Affine(bits=8),
    ),
    "svdquant-int4": Preset(
        "svdquant",
        "4-bit weights and arithmetic with a 16-bit part of rank 32; for NVIDIA GPUs from Turing to Ada",
        weights=_INT4,
        encoders=FLOAT,
    ),
    "svdquant-nvfp4": Preset(
        "svdquant",
        "4-bit float weights and arithmetic with a 16-bit part of rank 32; for NVIDIA's Blackwell GPUs",
        weights=_NVFP4,
        encoders=FLOAT,
    ),
    "nunchaku-int4": Preset(
        "nunchaku",
        "the weights of svdquant-int4 in Nunchaku's own single file, for ComfyUI and the Nunchaku library",
        weights=_INT4,
        encoders=FLOAT,
    ),
    "nunchaku-nvfp4": Preset(
        "nunchaku",
        "the weights of svdquant-nvfp4 in Nunchaku's own single file, for ComfyUI and the Nunchaku library",
        weights=_NVFP4,
        encoders=FLOAT,
    ),
    "sdnq-uint4": Preset(
        "sdnq",
        "4-bit weights with a 16-bit part of rank 32, rounded to compensate; for every device",
        weights=LowRank(rank=32, residual="uint4", group_size=64, **_COMPENSATED),
    ),
    "sdnq-int8": Preset(
        "sdnq",
        "8-bit weights, a scale per output channel, rounded to compensate; for every device",
        weights=Affine(bits=8, symmetric=True, **_COMPENSATED),
    ),
}


def find(variant: str) -> Preset | None:
    """The preset of this name, or one with a low-rank part whose rank the name says: `svdquant-int4-r64`."""
    match = _RANKED.fullmatch(variant)
    base = PRESETS.get(match["base"] if match else variant)
    if base is None or match is None:
        return base
    if not isinstance(base.weights, LowRank):
        return None
    rank = int(match["rank"])
    weights = base.weights.model_copy(update={"rank": rank})
    return replace(base, weights=weights, summary=f"{base.summary} (rank {rank} instead of {base.weights.rank})")


def preset(variant: str, components: Sequence[str]) -> Recipe:
    """The recipe of `variant` for the named components (those with weights). Raises RecipeError."""
    known = find(variant)
    if known is None:
        raise RecipeError(
            f"no preset makes {variant}", hint=meant(variant, PRESETS, f"see: {nextsteps.inspect()}")
        )
    return Recipe(
        name=variant,
        backend=known.backend,
        components={name: known.component(name) for name in components},
    )


_RANKED = re.compile(r"(?P<base>.+)-r(?P<rank>16|64|128)")
_MIXED = re.compile(r"[a-z0-9]+-mixed-(?P<bits>\d{1,2}(?:\.\d{1,2})?)bit(?:-fast)?")


def mixed_bits(variant: str) -> float | None:
    """Bits per weight of a variant such as `coreml-mixed-4.5bit`, None of others."""
    found = _MIXED.fullmatch(variant)
    return float(found["bits"]) if found else None
