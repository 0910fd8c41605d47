"""Reductions along axes; none given means all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdhub.backends.coreml.mil.operations.registry import operation

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _over_axes(name: str, reduce: Reduction) -> None:
    def function(x: Tensor, *, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
        return reduce(x, tuple(range(x.dim()) if axes is None else axes), keep_dims)

    function.__name__ = name
    operation(function)


_over_axes("reduce_l2_norm", lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt())
_over_axes("reduce_max", lambda x, axes, keep: torch.amax(x, axes, keepdim=keep))
_over_axes("reduce_mean", lambda x, axes, keep: torch.mean(_floating(x), axes, keepdim=keep))
_over_axes("reduce_sum", lambda x, axes, keep: x.sum(axes, keepdim=keep))


def _floating(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.double()


@operation
def reduce_argmax(x: Tensor, *, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """The first index of the greatest value."""
    return torch.argmax(x, axis, keepdim=keep_dims)
