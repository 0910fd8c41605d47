"""Linear layers whose weights and inputs both have 4 bits, as the kernels of SVDQuant compute them.

int4: symmetric codes, a scale for 64 inputs. nvfp4: e2m1 values, an fp8-e4m3 scale for 16. Inputs are rounded anew
for every token and group, with the scale that takes their greatest value to the greatest code. Source: Li et al.,
"SVDQuant", arXiv 2411.05007, and the kernels of Nunchaku.

Where a kernel makes its inputs by GELU, as Nunchaku's fused feed-forward layers do, int4 codes have no sign: by a
constant inputs are shifted beyond GELU's least value, and codes are 0 to 15.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from sdhub.compression import affine
from sdhub.compression.affine import Grid
from sdhub.compression.formats import E2M1, E2M1_MAX, E4M3_LEAST, E4M3_MAX, Levels

Precision: TypeAlias = Literal["int4", "nvfp4"]

GROUP = {"int4": 64, "nvfp4": 16}  # inputs under a scale, the kernels'
INT4_MAX, UNSIGNED_MAX = 7.0, 15.0
SHIFT = 0.171875  # Nunchaku's: GELU is nowhere below -0.17
SEARCH = 8  # measured in docs/compression.md


def rounded_inputs(
    inputs: Tensor, precision: Precision, dtype: torch.dtype = torch.float16, *, unsigned: bool = False
) -> Tensor:
    """What the kernels make of `inputs` (..., K): float32, dequantized; `dtype` is the type they compute in.

    The codes come from the scale in float32, its rounded form (`dtype`, or fp8) is what they are multiplied with.
    `unsigned`: int4 codes from 0 to 15, for inputs that are not negative.
    """
    groups = inputs.to(dtype).float().unflatten(-1, (-1, GROUP[precision]))
    peak = groups.abs().amax(dim=-1, keepdim=True)
    if precision == "int4":
        least, most = (0.0, UNSIGNED_MAX) if unsigned else (-8.0, INT4_MAX)
        scale = peak * (1 / most)
        codes = (groups * _reciprocal(scale)).round().clamp(least, most)
        return (codes * scale.to(dtype).float()).flatten(-2)
    scale = (peak * (1 / E2M1_MAX)).clamp_max(E4M3_MAX)
    values = nearest_e2m1(groups * _reciprocal(scale))
    return (values * scale.to(torch.float8_e4m3fn).float()).flatten(-2)


def linear(
    inputs: Tensor,
    residual: Tensor,
    smooth: Tensor,
    down: Tensor,
    up: Tensor,
    precision: Precision,
    dtype: torch.dtype = torch.float16,
    *,
    shifted: bool = False,
) -> Tensor:
    """What the kernels make of `inputs` (T, K), without a bias: float32 (T, N), but for the order of sums.

    Inputs, `shifted` by a constant where they come from GELU and are int4, are divided by `smooth` (K,), rounded,
    and meet `residual` (N, K), dequantized; as they are they meet `down` (r, K), then `up` (N, r). What is handed
    on between the kernels' steps is rounded to `dtype`.
    """
    given = inputs.to(dtype)
    moved = (given.float() + SHIFT).to(dtype) if shifted else given
    rounded = rounded_inputs((moved.float() / smooth).to(dtype), precision, dtype, unsigned=shifted)
    low = (given.float() @ down.T).to(dtype).float()
    return rounded @ residual.T + low @ up.T


def rounded_weight(
    weight: Tensor,
    precision: Precision,
    dtype: torch.dtype = torch.float16,
    *,
    search: int = SEARCH,
    importance: Tensor | None = None,
) -> Grid | Levels:
    """`weight` (N, K) rounded to nearest, with scales that `dtype` (int4) or fp8 under a power of two (nvfp4)
    hold exactly. `search` and `importance` as in `affine.quantize`."""
    weight = weight.float()
    if precision == "int4":
        grid = affine.quantize(
            weight, 4, symmetric=True, group_size=GROUP["int4"], search=search, importance=importance
        )
        scale = grid.scale.to(dtype).float()
        scale = torch.where(scale > 0, scale, torch.finfo(dtype).tiny)
        groups = weight.unflatten(1, (-1, GROUP["int4"])) / scale[..., None]
        return replace(grid, scale=scale, codes=groups.round().clamp(-8, INT4_MAX).flatten(1).to(torch.int8))
    return _rounded_nvfp4(weight, search, importance)


def _rounded_nvfp4(weight: Tensor, search: int, importance: Tensor | None) -> Levels:
    groups = weight.unflatten(1, (-1, GROUP["nvfp4"]))
    mass = None if importance is None else importance.view(-1, GROUP["nvfp4"])
    peak = groups.abs().amax(dim=-1, keepdim=True)
    # A power of two loses nothing in any type, and leaves e4m3 its fifteen octaves.
    top = float(peak.max()) / (E2M1_MAX * E4M3_MAX)
    tensor_scale = 2.0 ** math.ceil(math.log2(top)) if top > 0 else 1.0
    best, least = torch.ones_like(peak), torch.full_like(peak, torch.inf)
    for step in range(search + 1):
        wanted = peak * ((1 - step / (2 * max(search, 1))) / (E2M1_MAX * tensor_scale))
        trial = wanted.clamp(E4M3_LEAST, E4M3_MAX).to(torch.float8_e4m3fn).float()
        if search == 0:
            best = trial
            break
        scale = trial * tensor_scale
        off = (nearest_e2m1(groups / scale) * scale - groups).square_()
        error = (off if mass is None else off * mass).sum(dim=-1, keepdim=True)
        best, least = torch.where(error < least, trial, best), torch.minimum(error, least)
    values = nearest_e2m1(groups / (best * tensor_scale))
    size = values.abs()
    codes = torch.where(size < 2, 2 * size, torch.where(size <= 4, size + 2, 7)) + 8 * (values < 0)
    return Levels(
        codes.flatten(1).to(torch.uint8),
        torch.tensor(E2M1, device=weight.device),
        best.squeeze(-1).to(torch.float8_e4m3fn),
        torch.tensor(tensor_scale, device=weight.device),
        GROUP["nvfp4"],
    )


def nearest_e2m1(values: Tensor) -> Tensor:
    """The e2m1 value nearest to each, ties to the even code, as NVIDIA's conversion rounds; float32."""
    size = values.abs()
    fine, coarse = (size * 2).round() / 2, (size / 2).round() * 2
    nearest = torch.where(size < 2, fine, torch.where(size < 4, size.round(), coarse)).clamp_max(E2M1_MAX)
    return torch.copysign(nearest, values)


def _reciprocal(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, 1 / scale, 0.0)
