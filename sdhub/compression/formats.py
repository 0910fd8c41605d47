"""Small floating-point formats: fp8-e4m3 (OCP 8-bit floating point, 2023), NVFP4, and NF4.

NVFP4 (NVIDIA): e2m1 values in groups of 16 inputs, each with an e4m3 scale, under one float32 scale per tensor.
NF4 (QLoRA, Dettmers et al. 2023): 16 quantiles of the normal distribution, one absmax per group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdhub.errors import UsageError

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
E4M3_MAX, E2M1_MAX = 448.0, 6.0
E4M3_LEAST = 2.0**-9  # the smallest positive one
NVFP4_GROUP = 16


@dataclass(frozen=True)
class Fp8:
    """`values`: float8_e4m3fn, the weight's shape; `scale`: float32 (N, 1), or (1, 1) per tensor."""

    values: Tensor
    scale: Tensor

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that it stands for."""
        flat = self.values.float().reshape(self.values.shape[0], -1) * self.scale
        return flat.view(self.values.shape).to(dtype)


@dataclass(frozen=True)
class Levels:
    """Codes of fixed levels, scaled group by group.

    `codes`: uint8, the weight's shape, a code below 16 each. `levels`: float32 (16,), what the codes mean (NVFP4:
    `E2M1`, NF4: `NF4`). `block_scale`: (N, K / `group_size`), float8_e4m3fn for NVFP4, float32 for NF4.
    `tensor_scale`: float32 scalar, 1 for NF4. The weight is level · block_scale · tensor_scale.
    """

    codes: Tensor
    levels: Tensor
    block_scale: Tensor
    tensor_scale: Tensor
    group_size: int

    @property
    def scale(self) -> Tensor:
        """Both scales in one: float32 (N, K / `group_size`)."""
        return self.block_scale.float() * self.tensor_scale

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that it stands for."""
        values = self.levels[self.codes.long()].reshape(*self.scale.shape, self.group_size)
        return (values * self.scale[..., None]).reshape(self.codes.shape).to(dtype)


def fp8_e4m3(weight: Tensor, *, per: Literal["tensor", "channel"] = "channel") -> Fp8:
    """`weight` (N, ...) with its absmax scaled to 448, ties to even. Raises UsageError if it is not finite."""
    flat = _flat(weight)
    peak = flat.abs().amax(dim=1, keepdim=True) if flat.numel() else flat.new_zeros(flat.shape[0], 1)
    if per == "tensor":
        peak = peak.amax().view(1, 1) if peak.numel() else peak.new_zeros(1, 1)
    scale = _positive(peak / E4M3_MAX)
    values = (flat / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return Fp8(values.view(weight.shape), scale)


def nvfp4(weight: Tensor, *, search: int = 0) -> Levels:
    """`weight` (N, ...) as NVFP4; its flattened inputs are a multiple of 16.

    `search`: so many smaller block scales are tried (clipping the largest weight of a group, down to half) and the
    one of least squared error is kept. Raises UsageError for another width and for weights that are not finite.
    """
    groups = _groups(weight, NVFP4_GROUP)
    peak = _peak(groups)
    tensor_scale = _positive((peak.amax() if peak.numel() else peak.sum()) / (E2M1_MAX * E4M3_MAX))
    levels = torch.tensor(E2M1)
    scale, error = _block_scale(peak, tensor_scale).float(), torch.full_like(peak, torch.inf)
    for step in range(search + 1):
        trial = _block_scale(peak * (1 - step / (2 * max(search, 1))), tensor_scale).float()
        trial_error = _error(groups, trial * tensor_scale, levels)
        scale = torch.where(trial_error < error, trial, scale)
        error = torch.minimum(trial_error, error)
    codes = nearest_levels(groups / (scale * tensor_scale)[..., None], levels)
    return Levels(codes.view(weight.shape), levels, scale.to(torch.float8_e4m3fn), tensor_scale, NVFP4_GROUP)


def nf4(weight: Tensor, *, group_size: int = 64) -> Levels:
    """`weight` (N, ...) as NF4. Raises UsageError if `group_size` does not divide K, or if it is not finite."""
    groups = _groups(weight, group_size)
    scale = _positive(_peak(groups))
    levels = torch.tensor(NF4)
    codes = nearest_levels(groups / scale[..., None], levels)
    return Levels(codes.view(weight.shape), levels, scale, torch.tensor(1.0), group_size)


def nearest_levels(values: Tensor, levels: Tensor) -> Tensor:
    """Code, uint8, of the level nearest to each value; `levels` (L,) in any order. Ties go to the even code."""
    ordered, codes = levels.sort(stable=True)
    middle = (ordered[1:] + ordered[:-1]) / 2
    low, high = torch.bucketize(values, middle), torch.bucketize(values, middle, right=True)
    chosen = torch.where(codes[low] % 2 == 0, low, high)
    return codes[chosen].to(torch.uint8)


def _block_scale(peak: Tensor, tensor_scale: Tensor) -> Tensor:
    """e4m3 scales that a group's greatest weight divided by gives 6; never 0."""
    wanted = (peak / E2M1_MAX / tensor_scale).clamp(E4M3_LEAST, E4M3_MAX)
    return wanted.to(torch.float8_e4m3fn)


def _error(groups: Tensor, scale: Tensor, levels: Tensor) -> Tensor:
    values = levels[nearest_levels(groups / scale[..., None], levels).long()] * scale[..., None]
    return (values - groups).square().sum(-1)


def _peak(groups: Tensor) -> Tensor:
    return groups.abs().amax(dim=-1) if groups.numel() else groups.sum(-1)


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)


def _groups(weight: Tensor, size: int) -> Tensor:
    flat = _flat(weight)
    if size < 1 or flat.shape[1] % size:
        raise UsageError(f"groups of {size} inputs in {flat.shape[1]}", hint="a divisor of the flattened inputs")
    return flat.reshape(flat.shape[0], flat.shape[1] // size, size)


def _flat(weight: Tensor) -> Tensor:
    if not weight.is_floating_point() or weight.ndim < 2:
        raise UsageError(f"a weight of type {weight.dtype} and shape {tuple(weight.shape)} is no matrix")
    wrong = weight.numel() - int(torch.isfinite(weight).sum())
    if wrong:
        raise UsageError(f"a weight of shape {tuple(weight.shape)} has {wrong} infinite or NaN values")
    return weight.detach().cpu().float().flatten(1)
