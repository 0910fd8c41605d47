"""Pools, in 1 to 3 dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sdhub.backends.coreml.mil.operations.padding import around, pad_constant
from sdhub.backends.coreml.mil.operations.registry import operation

_MEAN: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_GREATEST: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@operation
def max_pool(
    x: Tensor,
    *,
    kernel_sizes: Sequence[int],
    pad_type: str,
    strides: Sequence[int] | None = None,
    pad: Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    padded, steps = _prepare(x, kernel_sizes, strides, pad_type, pad, ceil_mode, -math.inf)
    return _GREATEST[x.dim() - 2](padded, list(kernel_sizes), steps)


@operation
def avg_pool(
    x: Tensor,
    *,
    kernel_sizes: Sequence[int],
    pad_type: str,
    strides: Sequence[int] | None = None,
    pad: Sequence[int] | None = None,
    ceil_mode: bool = False,
    exclude_padding_from_average: bool = False,
) -> Tensor:
    """The mean of each window; what padding adds counts as 0, or not at all; behind it nothing counts."""
    padded, steps = _prepare(x, kernel_sizes, strides, pad_type, pad, ceil_mode, 0.0)
    pool = _MEAN[x.dim() - 2]
    mean: Tensor = pool(padded, list(kernel_sizes), steps)
    if not ceil_mode and not exclude_padding_from_average:
        return mean
    counted = torch.ones_like(x[:1, :1])
    if not exclude_padding_from_average:
        counted = _padded(counted, pad_type, pad)
        behind = [(0, have - want) for have, want in zip(padded.shape[2:], counted.shape[2:], strict=True)]
        counted = pad_constant(counted, behind)
    else:
        counted, _ = _prepare(counted, kernel_sizes, strides, pad_type, pad, ceil_mode, 0.0)
    return mean / pool(counted, list(kernel_sizes), steps)


@operation
def l2_pool(
    x: Tensor,
    *,
    kernel_sizes: Sequence[int],
    pad_type: str,
    strides: Sequence[int] | None = None,
    pad: Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The root of the sum of squares of each window."""
    padded, steps = _prepare(x.square(), kernel_sizes, strides, pad_type, pad, ceil_mode, 0.0)
    mean: Tensor = _MEAN[x.dim() - 2](padded, list(kernel_sizes), steps)
    return (mean * math.prod(kernel_sizes)).sqrt()


def _prepare(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    pad_type: str,
    pad: Sequence[int] | None,
    ceiling: bool,
    value: float,
) -> tuple[Tensor, list[int]]:
    """`x` with padding in it, for `ceiling` with as much behind it as the last window needs, and the strides."""
    steps = list(strides or [1] * len(kernel))
    pairs = around(pad_type, pad, x.shape[2:], kernel, steps)
    if ceiling:
        pairs = [
            (before, after + _overhang(length, before, after, size, step))
            for length, (before, after), size, step in zip(x.shape[2:], pairs, kernel, steps, strict=True)
        ]
    return (pad_constant(x, pairs, value) if any(map(any, pairs)) else x), steps


def _overhang(length: int, before: int, after: int, size: int, step: int) -> int:
    """How far the last window reaches behind the padding; a window that begins there is left out."""
    count = -(-(length + before + after - size) // step) + 1
    if (count - 1) * step >= length + before:
        count -= 1
    return max((count - 1) * step + size - (length + before + after), 0)


def _padded(ones: Tensor, pad_type: str, pad: Sequence[int] | None) -> Tensor:
    """`ones` with ones for the padding; `ceil_mode` goes with padding of type valid and custom alone."""
    lengths = ones.shape[2:]
    pairs = around(pad_type, pad, lengths, [1] * len(lengths), [1] * len(lengths))
    return pad_constant(ones, pairs, 1.0)
