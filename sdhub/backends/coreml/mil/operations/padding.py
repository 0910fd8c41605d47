"""Padding, as an operation and of convolutions and pools."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sdhub.backends.coreml.mil.operations.registry import operation
from sdhub.backends.coreml.mil.operations.size import bounded

Pairs = Sequence[tuple[int, int]]


def around(
    pad_type: str, pad: Sequence[int] | None, lengths: Sequence[int], kernel: Sequence[int], steps: Sequence[int]
) -> list[tuple[int, int]]:
    """Elements to add before and after each spatial axis; "same" gives ⌈length / step⌉ results.

    An odd one of "same" goes behind, of "same_lower" before, as in TensorFlow and ONNX.
    Raises ValueError where `pad_type` is unknown.
    """
    rank = len(lengths)
    if pad_type == "valid":
        return [(0, 0)] * rank
    if pad_type == "custom":
        sides = list(pad or [0] * (2 * rank))
        return [(sides[2 * axis], sides[2 * axis + 1]) for axis in range(rank)]
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"padding of type {pad_type}")
    pairs = []
    for length, size, step in zip(lengths, kernel, steps, strict=True):
        total = max((-(-length // step) - 1) * step + size - length, 0)
        less, more = total // 2, total - total // 2
        pairs.append((less, more) if pad_type == "same" else (more, less))
    return pairs


def pad_constant(x: Tensor, pairs: Pairs, value: float = 0.0) -> Tensor:
    """`x` with `value` around its last axes."""
    bounded(_padded(x, pairs))
    return F.pad(x, [side for pair in reversed(pairs) for side in pair], value=value)


def _padded(x: Tensor, pairs: Pairs) -> list[int]:
    grown = list(x.shape)
    for axis, pair in enumerate(pairs, start=x.dim() - len(pairs)):
        grown[axis] += sum(pair)
    return grown


@operation
def pad_(x: Tensor, pad: Tensor, *, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """`pad` has the numbers before and after each of the last axes, in their order."""
    sides: list[int] = pad.tolist()
    pairs = list(zip(sides[::2], sides[1::2], strict=True))
    if min(sides, default=0) < 0 or len(pairs) > x.dim():
        raise ValueError(f"padding of {sides}")
    if mode == "constant":
        return pad_constant(x, pairs, constant_val)
    bounded(_padded(x, pairs))
    for axis, (before, after) in enumerate(pairs, start=x.dim() - len(pairs)):
        if before or after:
            x = x.index_select(axis, _sources(mode, x.shape[axis], before, after))
    return x


def _sources(mode: str, length: int, before: int, after: int) -> Tensor:
    places = torch.arange(-before, length + after)
    if mode == "replicate":
        return places.clamp(0, length - 1)
    if mode != "reflect" or max(before, after) >= length:
        raise ValueError(f"padding of mode {mode} by {max(before, after)} of {length}")
    return length - 1 - (length - 1 - places.abs()).abs()
