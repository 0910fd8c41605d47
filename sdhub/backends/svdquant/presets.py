"""Presets of SVDQuant variants, in diffusers' files and in Nunchaku's own, and what an analysis chooses among."""

from __future__ import annotations

from typing import Any

from sdhub.recipes.presets import FLOAT, Preset
from sdhub.recipes.recipe import Float, LowRank, Rounding, Treatment

_GPTQ: Any = {"rounding": "gptq"}
_INT4 = LowRank(rank=32, residual="int4", group_size=64, activations="int4", smoothing=True, **_GPTQ)
_NVFP4 = LowRank(rank=32, residual="nvfp4", group_size=16, activations="nvfp4", smoothing=True, **_GPTQ)

PRESETS = {
    "svdquant-int4": Preset(
        "4-bit weights and arithmetic with a 16-bit part of rank 32; for NVIDIA GPUs from Turing to Ada",
        weights=_INT4,
        encoders=FLOAT,
    ),
    "svdquant-nvfp4": Preset(
        "4-bit float weights and arithmetic with a 16-bit part of rank 32; for NVIDIA's Blackwell GPUs",
        weights=_NVFP4,
        encoders=FLOAT,
    ),
}
NUNCHAKU_PRESETS = {
    "nunchaku-int4": Preset(
        "the weights of svdquant-int4 in Nunchaku's own single file, for ComfyUI and the Nunchaku library",
        weights=_INT4,
        encoders=FLOAT,
    ),
    "nunchaku-nvfp4": Preset(
        "the weights of svdquant-nvfp4 in Nunchaku's own single file, for ComfyUI and the Nunchaku library",
        weights=_NVFP4,
        encoders=FLOAT,
    ),
}


def choices(rounding: Rounding) -> tuple[Treatment, ...]:
    """4 bits, of the one rank that the format has, and 16-bit floats."""
    four = LowRank(rank=32, residual="int4", group_size=64, activations="int4", smoothing=True, rounding=rounding)
    return (four, Float())
