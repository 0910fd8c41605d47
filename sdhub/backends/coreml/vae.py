"""The two halves of an AutoencoderKL, or of an AutoencoderTiny, made of diffusers' own modules.

The tiny one reads and writes latents as the denoiser has them; Apple's apps divide those by the family's scaling
factor before they decode, and multiply after they encode (`specs.SCALING`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CERTAIN = -30.0  # logarithm of a variance that is none


class Decoder(nn.Module):
    """Latents, already divided by the scaling factor, to pictures in [-1, 1]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = model.post_quant_conv, model.decoder

    def forward(self, z: Tensor) -> Tensor:
        """(1, 4, h, w) to (1, 3, H, W)."""
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))


class Encoder(nn.Module):
    """Pictures in [-1, 1] to the mean and the logarithm of the variance of their latents."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.quant_conv, self.encoder = model.quant_conv, model.encoder

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) to (1, 8, h, w)."""
        latent = self.encoder(x)
        return latent if self.quant_conv is None else self.quant_conv(latent)


class TinyDecoder(nn.Module):
    """As `Decoder`, of an AutoencoderTiny; `scaling` is what its latents were divided by."""

    def __init__(self, model: Any, scaling: float) -> None:
        super().__init__()
        self.decoder, self.scaling = model.decoder, scaling

    def forward(self, z: Tensor) -> Tensor:
        """(1, 4, h, w) to (1, 3, H, W)."""
        return self.decoder(z * self.scaling)


class TinyEncoder(nn.Module):
    """As `Encoder`, of an AutoencoderTiny, whose latents have no variance; `scaling` as in `TinyDecoder`."""

    def __init__(self, model: Any, scaling: float) -> None:
        super().__init__()
        self.encoder, self.scaling = model.encoder, scaling

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) to (1, 8, h, w)."""
        latent = self.encoder(x) / self.scaling
        return torch.cat([latent, torch.full_like(latent, CERTAIN)], dim=1)
