"""The two halves of an AutoencoderKL, made of diffusers' own modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


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
