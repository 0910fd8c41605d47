"""Layers in the layout of the Neural Engine, (B, C, 1, S): channels on the second axis, tokens on the last.

They share the parameters of the modules they are made from, under the same names.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdhub.core.errors import UnsupportedError

Shape: TypeAlias = tuple[int, ...]


def static(tensor: Tensor) -> Shape:
    """The shape as plain numbers: a traced graph then holds no computation of shapes."""
    return tuple(int(side) for side in tensor.shape)


class Pointwise(nn.Module):
    """A Linear, or a Conv2d of one pixel, as a convolution of one pixel."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise UnsupportedError(f"{type(layer).__name__} in a transformer block", hint="Linear or Conv2d")
        weight = layer.weight.detach()
        if weight.ndim == 2:
            weight = weight[:, :, None, None]
        if weight.shape[2:] != (1, 1):
            raise UnsupportedError(f"a kernel of {tuple(weight.shape[2:])} where one pixel is expected")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, N, h, w)."""
        return functional.conv2d(x, self.weight, self.bias)


class ChannelNorm(nn.Module):
    """A LayerNorm over the channels of (B, C, 1, S).

    The bias is divided by the scale and comes before it, as in apple/ml-ane-transformers: in that form coremltools
    finds one `layer_norm` over the channels. Where a scale is zero it stays in parts.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        if not isinstance(norm, nn.LayerNorm) or len(norm.normalized_shape) != 1:
            raise UnsupportedError(f"{type(norm).__name__} in a transformer block", hint="LayerNorm of channels")
        self.eps = norm.eps
        scale, shift = (
            torch.full(norm.normalized_shape, usual) if each is None else each.detach().float()
            for each, usual in ((norm.weight, 1.0), (norm.bias, 0.0))
        )
        ratio = shift / scale
        self.fused = bool(torch.isfinite(ratio.half()).all())
        self.weight = nn.Parameter(scale.view(1, -1, 1, 1), requires_grad=False)
        self.bias = nn.Parameter((ratio if self.fused else shift).view(1, -1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 1, S) to the same."""
        centred = x - x.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)
        x = centred * (variance + self.eps).rsqrt()
        return (x + self.bias) * self.weight if self.fused else x * self.weight + self.bias


class GatedGELU(nn.Module):
    """diffusers' GEGLU."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.proj = Pointwise(layer.proj)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 1, S) to (B, N, 1, S)."""
        value, gate = self.proj(x).chunk(2, dim=1)
        return value * functional.gelu(gate)


class PlainGELU(nn.Module):
    """diffusers' GELU."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.proj = Pointwise(layer.proj)
        self.approximate = layer.approximate

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 1, S) to (B, N, 1, S)."""
        return functional.gelu(self.proj(x), approximate=self.approximate)


class FeedForward(nn.Module):
    """diffusers' FeedForward with a GEGLU or a GELU."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        first, last = layer.net[0], layer.net[2]
        kinds = {"GEGLU": GatedGELU, "GELU": PlainGELU}
        kind = kinds.get(type(first).__name__)
        if kind is None:
            raise UnsupportedError(f"{type(first).__name__} in a feed-forward layer", hint="GEGLU or GELU")
        self.net = nn.ModuleList([kind(first), nn.Identity(), Pointwise(last)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 1, S) to the same."""
        return self.net[2](self.net[0](x))


def tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) to (B, C, 1, h · w)."""
    batch, channels, height, width = static(x)
    return x.view(batch, channels, 1, height * width)


def pixels(x: Tensor, height: int, width: int) -> Tensor:
    """(B, C, 1, h · w) to (B, C, h, w)."""
    batch, channels, _, _ = static(x)
    return x.view(batch, channels, height, width)


class Sinusoids(nn.Module):
    """diffusers' Timesteps: numbers (B,) to waves of them (B, C, 1, 1)."""

    frequencies: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        half = layer.num_channels // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32)
        frequencies = layer.scale * (exponent / (half - layer.downscale_freq_shift)).exp()
        self.register_buffer("frequencies", frequencies.view(1, -1), persistent=False)
        self.flip, self.odd = layer.flip_sin_to_cos, layer.num_channels % 2

    def forward(self, values: Tensor) -> Tensor:
        """See the class."""
        angles = values[:, None] * self.frequencies
        parts = [angles.cos(), angles.sin()] if self.flip else [angles.sin(), angles.cos()]
        found = functional.pad(torch.cat(parts, dim=1), (0, self.odd)) if self.odd else torch.cat(parts, dim=1)
        return found[:, :, None, None]
