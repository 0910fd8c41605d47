"""Presets of Core ML variants, and what an analysis chooses among."""

from __future__ import annotations

from typing import Any

from sdhub.recipes.presets import Preset
from sdhub.recipes.recipe import Float, Palette, Rounding, Treatment

_GPTQ: Any = {"rounding": "gptq"}

PRESETS = {
    "coreml-fp16": Preset("16-bit weights; as good as the original", weights=Float()),
    "coreml-8bit": Preset("palettes of 256 values", weights=Palette(bits=8, **_GPTQ)),
    "coreml-6bit": Preset(
        "palettes of 64 values, rounded by GPTQ; the VAE in 16 bit",
        weights=Palette(bits=6, **_GPTQ),
    ),
    "coreml-4bit": Preset(
        "palettes of 16 values, rounded by GPTQ; text encoders in 6 bit, the VAE in 16 bit",
        weights=Palette(bits=4, **_GPTQ),
        encoders=Palette(bits=6, **_GPTQ),
    ),
    "coreml-4bit-grouped": Preset(
        "palettes of 16 values for every 16 output channels, rounded by GPTQ; text encoders in 6 bit, "
        "the VAE in 16 bit",
        weights=Palette(bits=4, group_size=16, **_GPTQ),
        encoders=Palette(bits=6, **_GPTQ),
    ),
}


def choices(rounding: Rounding) -> tuple[Treatment, ...]:
    """Palettes of every width that a package can have, and 16 bits; the narrowest first."""
    return (*(Palette(bits=bits, rounding=rounding) for bits in (1, 2, 3, 4, 6, 8)), Float())
