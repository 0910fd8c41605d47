"""What a layer multiplies with its weight, row by row: the tokens of a Linear, the patches of a Conv2d."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Rows:
    """The inputs of one call of a layer.

    `channels`: (V, C), every input vector: tokens, or pixels before padding. `count`: how many rows of K = C or
    K = C · kh · kw columns there are. `take`: the rows of an index (P,), as (P, K) float32; the order of columns
    is that of `weight.flatten(1)`, group after group, and that of rows and columns `torch.nn.functional.unfold`'s.
    """

    channels: Tensor
    count: int
    take: Callable[[Tensor], Tensor]


def layer_rows(layer: nn.Linear | nn.Conv2d, inputs: Tensor) -> Rows:
    """Rows of `inputs`: (..., C) of a Linear, (B, C, H, W) or (C, H, W) of a Conv2d.

    Patches are gathered where asked for, so that a wide convolution is never unfolded as a whole; stride,
    dilation, padding and padding mode are the layer's own.
    """
    if not isinstance(layer, nn.Conv2d):
        tokens = inputs.reshape(-1, inputs.shape[-1])
        return Rows(tokens, tokens.shape[0], lambda index: tokens[index].float())
    images = inputs if inputs.ndim == 4 else inputs[None]
    height, width = (_output_length(layer, axis, images.shape[2 + axis]) for axis in (0, 1))
    return Rows(
        channels=images.movedim(1, -1).flatten(0, -2),
        count=images.shape[0] * height * width,
        take=lambda index: _patches(
            layer, images, index // (height * width), index // width % height, index % width
        ),
    )


def _patches(conv: nn.Conv2d, images: Tensor, sample: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """(P, C · kh · kw) float32 at samples and output coordinates (P,)."""
    rows, columns = _taps(conv, 0, row), _taps(conv, 1, column)
    padded = _padded(conv, images)
    patches = padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return patches.permute(0, 3, 1, 2).flatten(1).float()


def _taps(conv: nn.Conv2d, axis: int, output: Tensor) -> Tensor:
    """Padded coordinates (P, k) that output coordinates (P,) look at."""
    reach = torch.arange(conv.kernel_size[axis], device=output.device) * conv.dilation[axis]
    return output[:, None] * conv.stride[axis] + reach


def _padded(conv: nn.Conv2d, images: Tensor) -> Tensor:
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    sides = (*_padding(conv, 1), *_padding(conv, 0))
    return nn.functional.pad(images, sides, mode=mode) if any(sides) else images


def _padding(conv: nn.Conv2d, axis: int) -> tuple[int, int]:
    if isinstance(conv.padding, str):
        total = conv.dilation[axis] * (conv.kernel_size[axis] - 1) if conv.padding == "same" else 0
        return total // 2, total - total // 2
    return conv.padding[axis], conv.padding[axis]


def _output_length(conv: nn.Conv2d, axis: int, length: int) -> int:
    reach: int = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
    stride: int = conv.stride[axis]
    return (length + sum(_padding(conv, axis)) - reach - 1) // stride + 1
