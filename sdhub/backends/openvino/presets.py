"""Presets of OpenVINO variants, and what an analysis chooses among."""

from __future__ import annotations

from typing import Any

from sdhub.recipes.presets import Preset
from sdhub.recipes.recipe import Affine, Float, Rounding, Treatment

_GPTQ: Any = {"rounding": "gptq"}

PRESETS = {
    "openvino-fp16": Preset(
        "16-bit weights; as good as the original, half the size of 32 bits",
        weights=Float(),
    ),
    "openvino-int8": Preset(
        "8-bit weights, a scale and zero point per output channel; float activations; the VAE in 16 bit",
        weights=Affine(bits=8),
    ),
    "openvino-int8-hybrid": Preset(
        "8-bit weights; convolutions compute in 8 bits; the VAE in 16 bit",
        weights=Affine(bits=8, activations="hybrid", higher_precision=0.03),
        encoders=Affine(bits=8),
    ),
    "openvino-int8-full": Preset(
        "8-bit weights; all layers of the denoiser compute in 8 bits, but for the few that would lose most; "
        "the VAE in 16 bit",
        weights=Affine(bits=8, activations="int8", smoothing=0.5, higher_precision=0.03),
        encoders=Affine(bits=8),
    ),
    "openvino-int4": Preset(
        "4-bit weights in groups of 64 inputs, rounded by GPTQ, 8-bit ones where the denoiser loses most; "
        "text encoders in 8 bit, the VAE in 16 bit",
        weights=Affine(bits=4, group_size=64, higher_precision=0.1, **_GPTQ),
        encoders=Affine(bits=8),
    ),
}


def choices(rounding: Rounding) -> tuple[Treatment, ...]:
    """Integers of 4 and 8 bits, and 16-bit floats; the narrowest first."""
    return (Affine(bits=4, group_size=64, rounding=rounding), Affine(bits=8), Float())
