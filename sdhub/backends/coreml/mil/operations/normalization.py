"""Normalizations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sdhub.backends.coreml.mil.operations.registry import operation


@operation
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, epsilon)


@operation
def layer_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axes: Sequence[int] | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    rank = x.dim()
    chosen = sorted(axis % rank for axis in (range(rank) if axes is None else axes))
    if chosen == list(range(rank - len(chosen), rank)):
        return F.layer_norm(x, x.shape[rank - len(chosen) :], gamma, beta, epsilon)
    place = [length if axis in chosen else 1 for axis, length in enumerate(x.shape)]
    return _affine(_normalized(x, chosen, epsilon), gamma, beta, place)


def _normalized(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + epsilon)


def _affine(x: Tensor, gamma: Tensor | None, beta: Tensor | None, place: Sequence[int]) -> Tensor:
    if gamma is not None:
        x = x * gamma.reshape(place)
    return x if beta is None else x + beta.reshape(place)
