"""Tensors out of shapes and numbers, bands and running sums."""

from __future__ import annotations

import torch
from torch import Tensor

from sdhub.backends.coreml.mil.operations.registry import operation
from sdhub.backends.coreml.mil.operations.size import bounded


@operation
def fill(shape: Tensor, *, value: float = 0.0) -> Tensor:
    return torch.full(bounded(shape.tolist()), value)


@operation
def fill_like(ref_tensor: Tensor, *, value: float = 0.0) -> Tensor:
    return torch.full(ref_tensor.shape, value)


@operation
def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    first, last, by = start.item(), end.item(), step.item()
    if by == 0:
        raise ValueError("a step of 0")
    bounded([int((last - first) / by) + 1])
    return torch.arange(first, last, by, dtype=start.dtype)


@operation
def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@operation
def band_part(x: Tensor, *, lower: int = -1, upper: int = -1) -> Tensor:
    """`x` with zeros below `lower` and above `upper` diagonals of its last two axes; negative keeps all."""
    rows, columns = torch.arange(x.shape[-2]).unsqueeze(1), torch.arange(x.shape[-1])
    keep = torch.ones(x.shape[-2:], dtype=torch.bool)
    if lower >= 0:
        keep &= rows - columns <= lower
    if upper >= 0:
        keep &= columns - rows <= upper
    return torch.where(keep, x, torch.zeros_like(x))


@operation
def cumsum(x: Tensor, *, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    if reverse:
        x = x.flip(axis)
    if exclusive and x.shape[axis]:
        zeros = torch.zeros_like(x.narrow(axis, 0, 1))
        x = torch.cat([zeros, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    total = torch.cumsum(x, axis)
    return total.flip(axis) if reverse else total
