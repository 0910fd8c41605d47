"""Sums of products: matrices, Einstein's notation, attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sdhub.backends.coreml.mil.operations.registry import operation


@operation
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


@operation
def matmul(x: Tensor, y: Tensor, *, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    if transpose_x and x.dim() > 1:
        x = x.transpose(-1, -2)
    if transpose_y and y.dim() > 1:
        y = y.transpose(-1, -2)
    return torch.matmul(x, y)


@operation
def einsum(values: Sequence[Tensor], *, equation: str) -> Tensor:
    return torch.einsum(equation, *values)


@operation
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """softmax(query · keyᵀ / √length + mask) · value; a truth value as mask says who takes part."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
