"""Shapes: reshape, transpose, join, split, repeat, enlarge."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdhub.backends.coreml.mil.operations.registry import operation
from sdhub.backends.coreml.mil.operations.size import bounded


@operation
def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """-1 takes what is left, 0 the length of `x` at the same place counted from the end, 1 where there is none.

    That is iOS 17's rule; where ranks are equal, as iOS 15 demands, it is iOS 15's.
    """
    lengths: list[int] = shape.tolist()
    return x.reshape([length or _counted_from_end(x, lengths, place) for place, length in enumerate(lengths)])


def _counted_from_end(x: Tensor, lengths: Sequence[int], place: int) -> int:
    same = x.dim() - len(lengths) + place
    return x.shape[same] if 0 <= same < x.dim() else 1


@operation
def transpose(x: Tensor, *, perm: Sequence[int]) -> Tensor:
    return x.permute(*perm)


@operation
def expand_dims(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operation
def squeeze(x: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    """Axes that are longer than 1 stay."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@operation
def concat(values: Sequence[Tensor], *, axis: int, interleave: bool = False) -> Tensor:
    if values[0].dim() == 0:
        return torch.stack(list(values))
    if not interleave:
        return torch.cat(list(values), axis)
    place = axis % values[0].dim()
    return torch.stack(list(values), place + 1).flatten(place, place + 1)


@operation
def stack(values: Sequence[Tensor], *, axis: int) -> Tensor:
    return torch.stack(list(values), axis)


@operation
def split(
    x: Tensor, *, axis: int, num_splits: int | None = None, split_sizes: Sequence[int] | None = None
) -> tuple[Tensor, ...]:
    if split_sizes is not None:
        return tuple(torch.split(x, list(split_sizes), axis))
    if num_splits is None or num_splits < 1 or x.shape[axis] % num_splits:
        raise ValueError(f"{num_splits} parts of {x.shape[axis]}")
    return tuple(torch.split(x, x.shape[axis] // num_splits, axis))


@operation
def tile(x: Tensor, reps: Tensor) -> Tensor:
    times: list[int] = reps.tolist()
    bounded(length * count for length, count in zip(x.shape, times, strict=True))
    return x.repeat(times)


@operation
def upsample_nearest_neighbor(
    x: Tensor, *, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Tensor:
    """The last two axes, to the whole part of their lengths times the factors."""
    lengths = [math.floor(x.shape[-2] * scale_factor_height), math.floor(x.shape[-1] * scale_factor_width)]
    bounded([*x.shape[:-2], *lengths])
    for axis, length in zip((-2, -1), lengths, strict=True):
        x = _nearest(x, axis, length)
    return x


def _nearest(x: Tensor, axis: int, length: int) -> Tensor:
    times, rest = divmod(length, x.shape[axis])
    if not rest:
        return x.repeat_interleave(times, axis)
    return x.index_select(axis, torch.arange(length) * x.shape[axis] // length)


@operation
def fill_like(ref_tensor: Tensor, *, value: float = 0.0) -> Tensor:
    return torch.full(ref_tensor.shape, value)
