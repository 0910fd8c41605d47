"""Counting and looking up values by their 16-bit codes.

A float16 or bfloat16 tensor has at most 65,536 distinct values, so what is done to its values costs the same for a
small and a large layer. Codes are counted as integers: NumPy's float16 sort and unique are wrong on some machines.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdhub.core.errors import UsageError

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

CODES = 1 << 16
CHUNK = 1 << 18  # elements whose indices fit a core's cache
SORTED = 1 << 20  # float32 values up to which sorting them is quick enough


def histogram(values: Tensor, weights: Tensor | None = None) -> tuple[Floats, Floats]:
    """Sorted values (n,) and their weights (n,) as float64: counts, or sums of `weights` of the same shape.

    float16 and bfloat16 are counted exactly. Of more than a million float32 (or float64) values, those that agree
    to 11 bits are one entry with their mean. Raises UsageError for infinities and NaN.
    """
    flat = values.detach().reshape(-1).cpu()
    mass = None if weights is None else weights.detach().reshape(-1).cpu().double().numpy()
    if flat.dtype in (torch.float16, torch.bfloat16):
        order, sorted_values = _ordered(flat.dtype)
        counts = _counted(_codes(flat), mass)[order]
        _check(values, int(np.count_nonzero(counts[len(sorted_values) :])))
        used = np.flatnonzero(counts[: len(sorted_values)])
        return sorted_values[used], counts[used]
    exact = flat.float().numpy()
    _check(values, int(exact.size - np.count_nonzero(np.isfinite(exact))))
    if exact.size <= SORTED:
        found, place = np.unique(exact, return_inverse=True)
        return found.astype(np.float64), np.bincount(place.reshape(-1), mass, len(found)).astype(np.float64)
    return _bucketed(exact, mass)


def assign(values: Tensor, centroids: npt.NDArray[np.float32]) -> Bytes:
    """Index of the nearest of ascending `centroids` (at most 256) for each value; the lower one of two as near."""
    middle = (centroids[1:].astype(np.float64) + centroids[:-1]) / 2
    flat = values.detach().reshape(-1).cpu()
    if flat.dtype in (torch.float16, torch.bfloat16) and flat.numel() > CODES // 16:
        order, sorted_values = _ordered(flat.dtype)
        table = np.zeros(CODES, np.uint8)
        table[order[: len(sorted_values)]] = np.searchsorted(middle, sorted_values)
        return _looked_up(table, _codes(flat))
    return np.asarray(np.searchsorted(middle.astype(np.float32), flat.float().numpy()), np.uint8)


@lru_cache(maxsize=2)
def _ordered(dtype: torch.dtype) -> tuple[npt.NDArray[np.intp], Floats]:
    """All codes, finite ones first by their value, and these values."""
    codes = torch.arange(CODES, dtype=torch.int32).to(torch.int16)
    values = codes.view(dtype).double().numpy()
    order = np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")
    return order, values[order[: int(np.isfinite(values).sum())]]


def _codes(flat: Tensor) -> npt.NDArray[np.uint16]:
    return np.asarray(flat.contiguous().view(torch.int16).numpy().view(np.uint16))


def _counted(codes: npt.NDArray[np.uint16], mass: Floats | None) -> Floats:
    counts = np.zeros(CODES)
    for start in range(0, len(codes), CHUNK):
        part = slice(start, start + CHUNK)
        counts += np.bincount(codes[part], None if mass is None else mass[part], CODES)
    return counts


def _looked_up(table: Bytes, codes: npt.NDArray[np.uint16]) -> Bytes:
    found = np.empty(len(codes), np.uint8)
    for start in range(0, len(codes), CHUNK):
        part = slice(start, start + CHUNK)
        np.take(table, codes[part], out=found[part], mode="clip")
    return found


def _bucketed(values: npt.NDArray[np.float32], mass: Floats | None) -> tuple[Floats, Floats]:
    """Means and weights of the buckets that values fall into when scaled into float16's range and rounded."""
    scale = 2.0 ** (14 - int(np.frexp(np.abs(values).max())[1]))
    counts, sums = np.zeros(CODES), np.zeros(CODES)
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK].astype(np.float64)
        codes = (part * scale).astype(np.float16).view(np.uint16)
        some = None if mass is None else mass[start : start + CHUNK]
        counts += np.bincount(codes, some, CODES)
        sums += np.bincount(codes, part if some is None else part * some, CODES)
    order, sorted_values = _ordered(torch.float16)
    order = order[: len(sorted_values)]
    used = order[counts[order] > 0]
    means = sums[used] / counts[used]
    ascending = np.argsort(means, kind="stable")
    return means[ascending], counts[used][ascending]


def _check(values: Tensor, wrong: int) -> None:
    if wrong:
        raise UsageError(
            f"a weight of shape {tuple(values.shape)} has {wrong} infinite or NaN values",
            hint="the checkpoint is broken, or was stored in a type too narrow for it",
        )
