"""Palettes: weights as indices into tables of at most 256 values, per tensor or per group of output channels.

Scalar tables are one-dimensional k-means within about a thousandth of its optimum (`kmeans.py`), plain or weighted
by importance (sensitive k-means: SqueezeLLM, Kim et al. 2023). Vector tables hold 2 or 4 weights of consecutive
output channels per entry, as Core ML does (`vectors.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sdhub.compression.affine import check_finite
from sdhub.compression.histogram import Floats, assign, histogram
from sdhub.compression.kmeans import batch_size, kmeans, sketches
from sdhub.compression.vectors import cluster_vectors, nearest_vectors
from sdhub.core.errors import UsageError

BITS = (1, 2, 3, 4, 6, 8)  # the widths of Core ML's indices
THREADS = 4  # at most, and no more than torch's: each takes up to 150 MB (peak in benchmarks/RESULTS.md)
TABLE_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


@dataclass(frozen=True)
class Palette:
    """A weight of N output channels as indices into tables.

    `indices`: uint8, the weight's shape; for vectors of d weights the first axis is N / d.
    `lut`: (G, 2^bits, d), float32, float16, bfloat16, or int8 with `scale`; ascending where d is 1. Table g serves
    the `group_size` output channels from g · `group_size`.
    `scale`: float32 (G,), by which an int8 table is multiplied; else None.
    """

    indices: Tensor
    lut: Tensor
    group_size: int
    scale: Tensor | None = None

    @property
    def bits(self) -> int:
        """Bits of an index."""
        return int(self.lut.shape[1]).bit_length() - 1

    @property
    def cluster_dim(self) -> int:
        """Weights per table entry."""
        return int(self.lut.shape[2])

    @property
    def table(self) -> Tensor:
        """The tables as they are applied: float32 (G, 2^bits, d)."""
        table = self.lut.float()
        return table if self.scale is None else table * self.scale[:, None, None]

    def dequantize(self) -> Tensor:
        """The weight that the palette stands for, in the weight's shape, float32."""
        rows, rest = self.indices.shape[0], self.indices.shape[1:]
        flat = self.indices.reshape(rows, rest.numel()).long()
        group = torch.arange(rows, device=self.lut.device) * self.cluster_dim // max(self.group_size, 1)
        vectors = self.table[group[:, None], flat]
        return vectors.movedim(-1, 1).reshape(rows * self.cluster_dim, *rest)


def palettize(
    weight: Tensor,
    bits: int,
    *,
    group_size: int | None = None,
    cluster_dim: int = 1,
    importance: Tensor | None = None,
    lut_dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Palette:
    """A palette of least (weighted) squared error.

    `weight`: (N, ...), floating point, output channels first. `bits`: 1, 2, 3, 4, 6 or 8. `group_size`: output
    channels that share a table: None for all of them, 1 for a table each; the last group may be smaller.
    `cluster_dim`: weights per table entry, 1, 2 or 4, taken from consecutive output channels. `importance`: not
    negative, of the weight's shape, or (C,) for its input channels (axis 1). `lut_dtype`: how tables are stored;
    indices are chosen for the table as stored. `seed` draws the first centroids of vectors.

    Raises UsageError for a width, size or type that is not offered, and for weights or importances that are
    infinite or NaN. The palette is on the CPU, wherever the weight is.
    """
    size = _check(weight, bits, group_size, cluster_dim, lut_dtype)
    weight = weight.detach().cpu()
    importance = _spread(importance, weight)
    if weight.numel() == 0:
        return _empty(weight, 1 << bits, size, cluster_dim, lut_dtype)
    if cluster_dim == 1:
        table = _scalar_tables(weight, 1 << bits, size, importance)
    else:
        check_finite(weight)
        table = _vector_tables(weight, 1 << bits, size, cluster_dim, importance, seed)
    lut, scale = _stored(table, lut_dtype)
    bare = Palette(torch.empty(0, dtype=torch.uint8), lut, size, scale)
    return Palette(nearest(weight, bare), lut, size, scale)


def sketch(weight: Tensor, bits: Sequence[int]) -> list[Palette]:
    """One-table palettes of `weight` (N, ...) in several widths that ascend, mostly within a hundredth of the
    least error and several times faster than one by one: enough to compare widths.

    Raises UsageError as `palettize`.
    """
    for each in bits:
        _check(weight, each, None, 1, torch.float16)
    weight = weight.detach().cpu()
    if weight.numel() == 0:
        return [_empty(weight, 1 << each, 1, 1, torch.float16) for each in bits]
    values, masses = histogram(weight)
    found = []
    for centroids in sketches(values, masses, [1 << each for each in bits]):
        lut, _ = _stored(torch.from_numpy(centroids).float()[None, :, None], torch.float16)
        bare = Palette(torch.empty(0, dtype=torch.uint8), lut, weight.shape[0])
        found.append(replace(bare, indices=nearest(weight, bare)))
    return found


def nearest(weight: Tensor, palette: Palette) -> Tensor:
    """Indices, as in `Palette`, of the entries of `palette`'s tables nearest to a finite `weight` (N, ...)."""
    table, size = palette.table, palette.group_size
    parts = weight.detach().cpu().split(size)
    if palette.cluster_dim > 1:
        found = [
            nearest_vectors(_vectors(part, palette.cluster_dim), entries).view(-1, *weight.shape[1:])
            for part, entries in zip(parts, table, strict=True)
        ]
    else:
        found = [
            torch.from_numpy(assign(part, entries[:, 0].numpy())).view(part.shape)
            for part, entries in zip(parts, table, strict=True)
        ]
    return torch.cat(found)


def _scalar_tables(weight: Tensor, clusters: int, size: int, importance: Tensor | None) -> Tensor:
    parts = weight.split(size)
    weights = [None] * len(parts) if importance is None else importance.split(size)

    def solved(start: int) -> Floats:
        chosen = slice(start, start + batch_size())
        found = [_histogram(part, mass) for part, mass in zip(parts[chosen], weights[chosen], strict=True)]
        counts = np.array([len(values) for values, _ in found])
        values, masses = np.zeros((2, len(found), counts.max()))
        for row, (value, mass) in enumerate(found):
            values[row, : len(value)], masses[row, : len(value)] = value, mass
        return kmeans(values, masses, clusters, counts)

    # NumPy lets other threads run while it works on large arrays.
    with ThreadPoolExecutor(min(THREADS, torch.get_num_threads())) as pool:
        tables = list(pool.map(solved, range(0, len(parts), batch_size())))
    return torch.from_numpy(np.concatenate(tables)).float()[..., None]


def _histogram(part: Tensor, mass: Tensor | None) -> tuple[Floats, Floats]:
    # Where nothing matters, everything does alike.
    weighted = mass is not None and bool((mass > 0).any())
    return histogram(part, mass if weighted else None)


def _vector_tables(
    weight: Tensor, clusters: int, size: int, dim: int, importance: Tensor | None, seed: int
) -> Tensor:
    parts = weight.float().split(size)
    masses = [torch.ones_like(part) for part in parts] if importance is None else importance.split(size)
    return torch.stack(
        [
            cluster_vectors(_vectors(part, dim), _vectors(mass, dim).mean(1), clusters, seed)
            for part, mass in zip(parts, masses, strict=True)
        ]
    )


def _vectors(part: Tensor, dim: int) -> Tensor:
    """(n, dim) from (channels, ...): entry j of a vector is channel j of `dim` consecutive ones."""
    flat = part.float().reshape(part.shape[0] // dim, dim, -1)
    return flat.movedim(1, -1).reshape(-1, dim)


def _stored(table: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Tables as stored, and the scale of int8 ones."""
    if dtype != torch.int8:
        limit = torch.finfo(dtype).max
        return table.clamp(-limit, limit).to(dtype), None
    scale = table.abs().amax(dim=(1, 2)) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    return (table / scale[:, None, None]).round().to(torch.int8), scale


def _empty(weight: Tensor, clusters: int, size: int, dim: int, dtype: torch.dtype) -> Palette:
    groups = -(-weight.shape[0] // size) if weight.ndim else 0
    shape = (weight.shape[0] // dim, *weight.shape[1:])
    scale = torch.ones(groups) if dtype == torch.int8 else None
    return Palette(
        torch.zeros(shape, dtype=torch.uint8), torch.zeros(groups, clusters, dim, dtype=dtype), size, scale
    )


def _spread(importance: Tensor | None, weight: Tensor) -> Tensor | None:
    """Importance in the weight's shape, float32."""
    if importance is None:
        return None
    mass = importance.detach().cpu().float()
    if mass.ndim == 1 and weight.ndim > 1 and mass.shape[0] == weight.shape[1]:
        mass = mass.view(1, -1, *[1] * (weight.ndim - 2)).expand(weight.shape)
    if mass.shape != weight.shape:
        raise UsageError(f"importance of shape {tuple(importance.shape)} for a weight {tuple(weight.shape)}")
    if mass.numel() and not (bool(torch.isfinite(mass).all()) and bool((mass >= 0).all())):
        raise UsageError("importance has negative, infinite or NaN values")
    return mass


def _check(weight: Tensor, bits: int, group_size: int | None, dim: int, dtype: torch.dtype) -> int:
    """The group size in output channels."""
    if not weight.is_floating_point() or weight.ndim == 0:
        raise UsageError(f"a weight of type {weight.dtype} and shape {tuple(weight.shape)} has no palette")
    if bits not in BITS:
        raise UsageError(f"palettes of {bits} bits", hint=f"one of {', '.join(map(str, BITS))}")
    if dtype not in TABLE_TYPES:
        raise UsageError(f"palettes stored as {dtype}", hint="float32, float16, bfloat16 or int8")
    size = weight.shape[0] if group_size is None else group_size
    if group_size is not None and group_size < 1:
        raise UsageError(f"groups of {group_size} channels", hint="1 or more, or None for the whole tensor")
    if dim not in (1, 2, 4) or weight.shape[0] % dim or size % dim:
        raise UsageError(
            f"vectors of {dim} weights in {weight.shape[0]} output channels, {size} a group",
            hint="1, 2 or 4, a divisor of both",
        )
    return max(size, 1)
