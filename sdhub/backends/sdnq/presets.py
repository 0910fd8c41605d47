"""Presets of SDNQ variants, and what an analysis chooses among."""

from __future__ import annotations

from typing import Any

from sdhub.recipes.presets import Preset
from sdhub.recipes.recipe import Affine, Float, LowRank, Rounding, Treatment

_GPTQ: Any = {"rounding": "gptq"}

PRESETS = {
    "sdnq-uint4": Preset(
        "4-bit weights with a 16-bit part of rank 32, rounded by GPTQ; for every device",
        weights=LowRank(rank=32, residual="uint4", group_size=64, **_GPTQ),
    ),
    "sdnq-int8": Preset(
        "8-bit weights, a scale per output channel, rounded by GPTQ; for every device",
        weights=Affine(bits=8, symmetric=True, **_GPTQ),
    ),
}


def choices(rounding: Rounding) -> tuple[Treatment, ...]:
    """4 bits with branches of every rank, 8 bits, and 16-bit floats; the narrowest first."""
    ranks = (0, 16, 32, 64, 128)
    return (
        *(LowRank(rank=rank, residual="uint4", group_size=64, rounding=rounding) for rank in ranks),
        Affine(bits=8, symmetric=True, rounding=rounding),
        Float(),
    )
