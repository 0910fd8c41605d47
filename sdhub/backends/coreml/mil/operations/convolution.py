"""Convolution and its transpose, in 1 to 3 dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sdhub.backends.coreml.mil.operations.padding import around, pad_constant
from sdhub.backends.coreml.mil.operations.registry import operation

_FORWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operation
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int] | None = None,
    pad_type: str = "valid",
    pad: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """`x` [N, C, D…] with `weight` [O, C / groups, K…]."""
    rank = x.dim() - 2
    steps, gaps = list(strides or [1] * rank), list(dilations or [1] * rank)
    kernel = [(size - 1) * gap + 1 for size, gap in zip(weight.shape[2:], gaps, strict=True)]
    pairs = around(pad_type, pad, x.shape[2:], kernel, steps)
    if any(before != after for before, after in pairs):
        x, pairs = pad_constant(x, pairs), [(0, 0)] * rank
    sides = [before for before, _ in pairs]
    return _FORWARD[rank](x, weight, bias, steps, sides, gaps, groups)


@operation
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pad: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pad_type: str = "valid",
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """`x` [N, C, D…] with `weight` [C, O / groups, K…]; `pad` is cut off the result."""
    rank = x.dim() - 2
    steps, gaps = list(strides or [1] * rank), list(dilations or [1] * rank)
    whole = _TRANSPOSED[rank](x, weight, None, steps, 0, 0, groups, gaps)
    for axis in range(rank):
        full, cut = whole.shape[2 + axis], (0, 0)
        if pad_type == "custom" and pad is not None:
            cut = (pad[2 * axis], pad[2 * axis + 1])
        elif pad_type == "same":
            spare = full - x.shape[2 + axis] * steps[axis]
            cut = (max(spare, 0) // 2, spare - max(spare, 0) // 2)
        elif pad_type not in ("valid", "custom"):
            raise ValueError(f"padding of type {pad_type}")
        length = output_shape[2 + axis] if output_shape is not None else full - sum(cut)
        whole = _cut(whole, 2 + axis, cut[0], length)
    return whole if bias is None else whole + bias.reshape([-1] + [1] * rank)


def _cut(x: Tensor, axis: int, start: int, length: int) -> Tensor:
    """`length` indices from `start` on, zeros behind the end."""
    missing = start + length - x.shape[axis]
    if missing > 0:
        shape = list(x.shape)
        shape[axis] = missing
        x = torch.cat([x, x.new_zeros(shape)], axis)
    return x.narrow(axis, start, length)
