"""Weights of the true SD 1.5 shape, random and heavy-tailed per channel: no checkpoint is downloaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

SD15 = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


def sd15_unet() -> Shapes:
    """Names and shapes of all parameters of the SD 1.5 UNet (859.5 M), in order."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
    return {name: tuple(parameter.shape) for name, parameter in unet.named_parameters()}


def large(shapes: Shapes, least: int = 100_000) -> Shapes:
    """The weights of Linear and Conv2d layers that have at least `least` elements."""
    return {name: shape for name, shape in shapes.items() if len(shape) > 1 and torch.Size(shape).numel() >= least}


def weight_of(name: str, shape: tuple[int, ...]) -> Tensor:
    """A float16 weight: Student's t with 5 degrees of freedom, log-normal scales per output channel.

    The same for the same name on every run.
    """
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big"))
    fan_in = torch.Size(shape[1:]).numel()
    normal = torch.randn(shape, generator=generator)
    # The square root of a gamma variable of shape 5/2 is what divides a normal one into a Student's t; a mean of
    # five squared normals is the same, of a sixteenth of the size and repeated, which is quicker.
    squares = torch.randn(5, -(-normal.numel() // 16), generator=generator).square().mean(dim=0)
    tails = squares.repeat(16)[torch.arange(normal.numel())].view(shape).rsqrt()
    channels = torch.exp(0.5 * torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator))
    return (normal * tails * channels * fan_in**-0.5).half()


def weights(shapes: Shapes) -> Iterator[tuple[str, Tensor]]:
    """Weights one by one, so that one is in memory at a time."""
    for name, shape in shapes.items():
        yield name, weight_of(name, shape)
