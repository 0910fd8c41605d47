"""Resizing of pictures: nearest neighbour and linear interpolation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdhub.backends.coreml.mil.operations.registry import operation
from sdhub.backends.coreml.mil.operations.size import bounded

_SPACINGS: dict[str, Callable[[int, int], tuple[float, float]]] = {
    # Start and spacing of the points that are sampled along an axis, from its old and its new length.
    "STRICT_ALIGN_CORNERS": lambda old, new: (0.0, (old - 1) / max(new - 1, 1)),
    "ALIGN_CORNERS": lambda old, new: (0.0, (old - 1) / (new - 1)) if new > 1 else ((old - 1) / 2, 0.0),
    "DEFAULT": lambda old, new: (0.0, old / new),
    "OFFSET_CORNERS": lambda old, new: (0.5 * max(1, old - 1) / new, max(1, old - 1) / new),
    "UNALIGN_CORNERS": lambda old, new: (0.5 * old / new - 0.5, old / new),
}


@operation
def upsample_nearest_neighbor(
    x: Tensor, *, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Tensor:
    return _resize(x, _scaled(x, scale_factor_height, scale_factor_width), _nearest)


@operation
def resize_nearest_neighbor(x: Tensor, *, target_size_height: int, target_size_width: int) -> Tensor:
    return _resize(x, [target_size_height, target_size_width], _nearest)


@operation
def upsample_bilinear(
    x: Tensor, *, scale_factor_height: float = 1, scale_factor_width: float = 1, align_corners: bool = True
) -> Tensor:
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS"
    return _resize(x, _scaled(x, scale_factor_height, scale_factor_width), _linear(mode))


@operation
def resize_bilinear(
    x: Tensor, *, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    return _resize(x, [target_size_height, target_size_width], _linear(sampling_mode))


@operation
def resize(
    x: Tensor,
    shape: Tensor,
    *,
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last `resized_dims` axes to the last lengths of `shape`; 0 leaves a length as it is."""
    wanted = shape.tolist()[-resized_dims:]
    lengths = [length or have for length, have in zip(wanted, x.shape[-resized_dims:], strict=True)]
    if interpolation_mode == "LINEAR":
        return _resize(x, lengths, _linear(sampling_mode))
    if sampling_mode != "DEFAULT":
        raise ValueError(f"interpolation {interpolation_mode} with sampling {sampling_mode}")
    return _resize(x, lengths, _nearest)


def _scaled(x: Tensor, height: float, width: float) -> list[int]:
    return [math.floor(x.shape[-2] * height), math.floor(x.shape[-1] * width)]


def _resize(x: Tensor, lengths: Sequence[int], along: Callable[[Tensor, int, int], Tensor]) -> Tensor:
    bounded([*x.shape[: x.dim() - len(lengths)], *lengths])
    for axis, length in enumerate(lengths, start=x.dim() - len(lengths)):
        if length != x.shape[axis]:
            x = along(x, axis, length)
    return x


def _nearest(x: Tensor, axis: int, length: int) -> Tensor:
    times, rest = divmod(length, x.shape[axis])
    if not rest:
        return x.repeat_interleave(times, axis)
    return x.index_select(axis, torch.arange(length) * x.shape[axis] // length)


def _linear(mode: str) -> Callable[[Tensor, int, int], Tensor]:
    if mode not in _SPACINGS:
        raise ValueError(f"sampling of mode {mode}")

    def along(x: Tensor, axis: int, length: int) -> Tensor:
        last = x.shape[axis] - 1
        start, spacing = _SPACINGS[mode](last + 1, length)
        points = (torch.arange(length, dtype=torch.float64) * spacing + start).clamp(0, last)
        below = points.long()
        share = (points - below).to(x.dtype).reshape([-1] + [1] * (x.dim() - 1 - axis))
        above = (below + 1).clamp(max=last)
        return torch.lerp(x.index_select(axis, below), x.index_select(axis, above), share)

    return along
