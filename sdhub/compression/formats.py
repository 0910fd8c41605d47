"""NVFP4 (NVIDIA): e2m1 values in groups of 16 inputs, each with an e4m3 scale, under one float32 scale per tensor.

e2m1: OCP Microscaling formats 1.0 (2023); e4m3: OCP 8-bit floating point 1.0 (2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdhub.compression.affine import check_finite
from sdhub.core.errors import UsageError

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
E4M3_MAX, E2M1_MAX = 448.0, 6.0  # the greatest finite ones
E4M3_LEAST = 2.0**-9  # the smallest positive one
NVFP4_GROUP = 16  # inputs under a scale, NVIDIA's


@dataclass(frozen=True)
class Levels:
    """Codes of fixed levels, scaled group by group.

    `codes`: uint8, the weight's shape, a code below 16 each. `levels`: float32 (16,), what the codes mean: `E2M1`.
    `block_scale`: float8_e4m3fn (N, K / `group_size`). `tensor_scale`: float32 scalar. The weight is
    level · block_scale · tensor_scale.
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

    def dequantize(self) -> Tensor:
        """The weight that it stands for, float32."""
        values = self.levels[self.codes.long()].reshape(*self.scale.shape, self.group_size)
        return (values * self.scale[..., None]).reshape(self.codes.shape)


def nvfp4(weight: Tensor, *, search: int = 0) -> Levels:
    """`weight` (N, ...) as NVFP4; its flattened inputs are a multiple of 16.

    `search`: so many smaller block scales are tried (clipping the largest weight of a group, down to half) and the
    one of least squared error is kept. Raises UsageError for another width and for weights that are not finite.
    """
    groups = _groups(weight, NVFP4_GROUP)
    peak = _peak(groups)
    tensor_scale = _positive((peak.amax() if peak.numel() else peak.sum()) / (E2M1_MAX * E4M3_MAX))
    levels = torch.tensor(E2M1, device=groups.device)
    scale, error = _block_scale(peak, tensor_scale).float(), torch.full_like(peak, torch.inf)
    for step in range(search + 1):
        trial = _block_scale(peak * (1 - step / (2 * max(search, 1))), tensor_scale).float()
        trial_error = _error(groups, trial * tensor_scale, levels)
        scale = torch.where(trial_error < error, trial, scale)
        error = torch.minimum(trial_error, error)
    codes = nearest_levels(groups / (scale * tensor_scale)[..., None], levels)
    return Levels(codes.view(weight.shape), levels, scale.to(torch.float8_e4m3fn), tensor_scale, NVFP4_GROUP)


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
    check_finite(weight)
    return weight.detach().float().flatten(1)
