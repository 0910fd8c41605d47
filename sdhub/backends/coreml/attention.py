"""Attention in the layout (B, C, 1, S), in three forms that Apple's compute units take differently.

`original` multiplies all heads at once, for GPUs. `split_einsum` takes every head by itself, which the Neural
Engine needs ("Deploying Transformers on the Apple Neural Engine", 2022); `split_einsum_v2` takes 512 queries at a
time as well. All three compute the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sdhub.backends.coreml.layers import Pointwise, static
from sdhub.core.errors import UnsupportedError

QUERIES = 512  # that `split_einsum_v2` takes at a time

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def original(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Queries (B, C, 1, Q), keys and values (B, C, 1, K) to (B, C, 1, Q)."""
    batch, channels, _, count = static(query)
    width = channels // heads
    query, key, value = (each.view(batch, heads, width, static(each)[3]) for each in (query, key, value))
    weights = torch.einsum("bhcq,bhck->bhqk", query, key * width**-0.5).softmax(dim=3)
    return torch.einsum("bhqk,bhck->bhcq", weights, value).reshape(batch, channels, 1, count)


def split_einsum(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """As `original`."""
    return torch.cat([_attend(*each) for each in _split(query, key, value, heads)], dim=1)


def split_einsum_v2(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """As `original`."""
    count = static(query)[3]
    if count <= QUERIES:
        return split_einsum(query, key, value, heads)
    found = [
        torch.cat([_attend(part, keys, values) for part in queries.split(QUERIES, dim=3)], dim=3)
        for queries, keys, values in _split(query, key, value, heads)
    ]
    return torch.cat(found, dim=1)


def _split(query: Tensor, key: Tensor, value: Tensor, heads: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Head by head queries (B, c, 1, Q), scaled keys (B, K, 1, c) and values (B, c, 1, K)."""
    width = static(query)[1] // heads
    keys = key.transpose(1, 3) * width**-0.5
    return list(zip(query.split(width, dim=1), keys.split(width, dim=3), value.split(width, dim=1), strict=True))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = torch.einsum("bchq,bkhc->bkhq", query, key).softmax(dim=1)
    return torch.einsum("bkhq,bchk->bchq", weights, value)


IMPLEMENTATIONS: Mapping[str, Attend] = {
    "original": original,
    "split_einsum": split_einsum,
    "split_einsum_v2": split_einsum_v2,
}


class Attention(nn.Module):
    """diffusers' Attention without masks and norms of its own."""

    def __init__(self, layer: nn.Module, attend: Attend) -> None:
        super().__init__()
        extras = ("group_norm", "spatial_norm", "norm_q", "norm_k", "norm_cross", "add_k_proj")
        found = [name for name in extras if getattr(layer, name, None) is not None]
        if found or layer.residual_connection or layer.rescale_output_factor != 1:
            raise UnsupportedError(f"attention with {found[0] if found else 'a residual of its own'}")
        self.heads, self.attend = layer.heads, attend
        self.to_q, self.to_k, self.to_v = (Pointwise(each) for each in (layer.to_q, layer.to_k, layer.to_v))
        self.to_out = nn.ModuleList([Pointwise(layer.to_out[0])])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Tokens (B, C, 1, S), and what they attend to, (B, D, 1, T), themselves where it is None."""
        source = x if context is None else context
        return self.to_out[0](self.attend(self.to_q(x), self.to_k(source), self.to_v(source), self.heads))
