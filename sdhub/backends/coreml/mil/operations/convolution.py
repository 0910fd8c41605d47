"""Convolution, in 1 to 3 dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from sdhub.backends.coreml.mil.operations.padding import around, pad_constant
from sdhub.backends.coreml.mil.operations.registry import operation

_FORWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


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
