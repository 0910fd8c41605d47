"""Slices and gathering."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdhub.backends.coreml.mil.operations.registry import operation
from sdhub.backends.coreml.mil.operations.size import bounded


@operation
def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    *,
    stride: Sequence[int] | None = None,
    begin_mask: Sequence[bool] | None = None,
    end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> Tensor:
    """numpy's slices; a mask leaves its bound open, or takes one index and drops the axis."""
    slices, squeezed = _slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    for axis, (start, count, step) in enumerate(slices):
        x = _slice(x, axis, start, count, step)
    return x.squeeze(squeezed) if squeezed else x


def _slices(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Sequence[int] | None,
    begin_mask: Sequence[bool] | None,
    end_mask: Sequence[bool] | None,
    squeeze_mask: Sequence[bool] | None,
) -> tuple[list[tuple[int, int, int]], tuple[int, ...]]:
    rank = x.dim()
    steps = stride or [1] * rank
    open_begin, open_end = begin_mask or [False] * rank, end_mask or [False] * rank
    dropped = squeeze_mask or [False] * rank
    slices = []
    bounds = zip(x.shape, begin.tolist(), end.tolist(), steps, open_begin, open_end, dropped, strict=True)
    for length, first, last, step, no_first, no_last, drop in bounds:
        start = None if no_first else first
        if drop:
            taken = range(length)[start or 0 :][:1]
            if start is not None and not -length <= start < length:
                raise IndexError(f"index {start} of {length}")
        else:
            taken = range(length)[slice(start, None if no_last else last, step)]
        slices.append((taken.start, len(taken), taken.step))
    return slices, tuple(axis for axis in range(rank) if dropped[axis])


def _slice(x: Tensor, axis: int, start: int, count: int, step: int) -> Tensor:
    if step == 1 or count < 2:
        return x.narrow(axis, start if count else 0, count)
    if step > 0:
        return x.narrow(axis, start, (count - 1) * step + 1).unfold(axis, 1, step).squeeze(-1)
    return x.index_select(axis, torch.arange(count) * step + start)


@operation
def gather(
    x: Tensor, indices: Tensor, *, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """Slices of `x` along `axis`; indices below 0 count from the end, those out of range are refused."""
    place = axis % x.dim()
    batch, before = x.shape[:batch_dims], x.shape[batch_dims:place]
    after, length = x.shape[place + 1 :], x.shape[place]
    chosen = _nonnegative(indices, length)
    shape = [*batch, *before, *chosen.shape[batch_dims:], *after]
    bounded(shape)
    if not batch_dims:
        return x.index_select(place, chosen.reshape(-1)).reshape(shape)
    if chosen.shape[:batch_dims] != batch:
        raise ValueError(f"indices of shape {list(chosen.shape)} for batches of {list(batch)}")
    rows = x.flatten(0, batch_dims - 1)
    places = chosen.reshape(len(rows), -1)
    each = [row.index_select(place - batch_dims, where) for row, where in zip(rows, places, strict=True)]
    return torch.stack(each).reshape(shape)


@operation
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """`x` at the coordinates along the last axis of `indices`."""
    depth = indices.shape[-1]
    batch = x.shape[:batch_dims]
    rows = x.reshape(-1, *x.shape[batch_dims:]) if batch_dims else x.unsqueeze(0)
    places = indices.reshape(len(rows), -1, depth)
    each = [torch.arange(len(rows)).unsqueeze(1)]
    each += [_nonnegative(places[..., axis], x.shape[batch_dims + axis]) for axis in range(depth)]
    shape = [*batch, *indices.shape[batch_dims:-1], *x.shape[batch_dims + depth :]]
    return rows[tuple(each)].reshape(bounded(shape))


def _nonnegative(indices: Tensor, length: int) -> Tensor:
    wide = indices.long()
    return torch.where(wide < 0, wide + length, wide)
