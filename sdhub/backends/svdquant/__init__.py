"""SVDQuant: 4-bit weights and 4-bit arithmetic on NVIDIA's GPUs, in the format `nunchaku_lite` of diffusers."""

from sdhub.backends.svdquant.backend import BACKEND

__all__ = ["BACKEND"]
