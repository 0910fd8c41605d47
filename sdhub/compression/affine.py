"""Integer grids: weight = scale · (code - zero point), per tensor, per output channel, or per group of inputs.

Weights are seen as (N, K): output channels times flattened inputs, as in ONNX's DequantizeLinear and in OpenVINO's
compressed weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdhub.core.errors import UsageError

# Measured in docs/compression.md.
SMALLEST = 0.4  # of the range, the most that the search clips to
REFITS = 2  # of each scale that is tried
CHUNK = 2**16  # weights at once: what fits a core's cache
DEVICE_CHUNK = 2**24  # elsewhere than on the CPU, where many are as quick as few


@dataclass(frozen=True)
class Grid:
    """A weight of N output channels and K flattened inputs on integer grids.

    `codes`: the weight's shape; int8 in [-2^(bits-1), 2^(bits-1) - 1] where symmetric, else uint8 in
    [0, 2^bits - 1]. `scale`: float32 (N, K / `group_size`), or (1, 1) per tensor. `zero_point`: float32 of the
    shape of `scale`, None where symmetric. `group_size`: inputs that share a scale, in the order of K.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bits: int
    group_size: int

    def dequantize(self) -> Tensor:
        """The weight that the grid stands for, float32."""
        if self.codes.numel() == 0:
            return self.codes.float()
        grouped = _grouped(self.codes.float(), self.group_size)
        if self.zero_point is not None:
            grouped.sub_(self.zero_point[..., None])
        return grouped.mul_(self.scale[..., None]).view(self.codes.shape)


def quantize(
    weight: Tensor,
    bits: int,
    *,
    symmetric: bool = False,
    per: Literal["tensor", "channel"] = "channel",
    group_size: int | None = None,
    integer_zero: bool = True,
    search: int = 0,
    importance: Tensor | None = None,
) -> Grid:
    """Round-to-nearest on integer grids.

    `weight`: (N, ...), floating point. `bits`: 2 to 8. `per`: what has a scale of its own; with `group_size` each
    run of so many flattened inputs of each channel, a divisor of K. `symmetric`: the scale is the absmax over
    2^(bits-1) - 1; else the grid spans the least and the greatest weight and holds 0, with a whole zero point
    among the codes (`integer_zero` False: any zero point, and 0 need not be on the grid). `search`: so many
    narrower ranges are tried, down to 0.4 of the whole, and scales refitted; the one of least squared error is
    kept. `importance`: not negative, of the weight's shape or (K,), weighs that error; without `search` it does
    nothing.

    Raises UsageError for a width or group that is not offered and for infinite or NaN weights.
    """
    size = _check(weight, bits, per, group_size)
    flat = weight.detach().float()
    flat = flat.reshape(1, -1) if per == "tensor" else flat.reshape(weight.shape[0], weight.shape[1:].numel())
    values = _grouped(flat, size)
    mass = None if importance is None else _grouped(_spread(importance, weight).reshape(flat.shape), size)
    rule: Rule = _symmetric if symmetric else _integer if integer_zero else _free
    span = code_range(bits, symmetric)
    scale, zero = _scales(values, mass, span, rule, search)
    codes = _codes(values, scale, zero, span).view(weight.shape)
    shape = (values.shape[0], values.shape[1])
    return Grid(
        codes.to(torch.int8 if symmetric else torch.uint8),
        scale.view(shape),
        None if symmetric else zero.view(shape),
        bits,
        weight[0].numel() if per == "tensor" and weight.shape[0] else size,
    )


def scales(
    groups: Tensor, bits: int, *, symmetric: bool = False, search: int = 0, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scales and zero points (N, G, 1) of groups of weights (N, G, size), float32 and finite, without the codes.

    As `quantize` finds them, with any zero point (0 where symmetric); `importance`: of the shape of `groups`.
    """
    rule: Rule = _symmetric if symmetric else _free
    return _scales(groups, importance, code_range(bits, symmetric), rule, search)


def check_finite(weight: Tensor) -> None:
    """Raises UsageError for infinite and NaN weights."""
    if math.isfinite(float(weight.detach().sum())):  # several times faster than isfinite
        return
    if wrong := weight.numel() - int(torch.isfinite(weight).sum()):
        raise UsageError(f"a weight of shape {tuple(weight.shape)} has {wrong} infinite or NaN values")


def code_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """The least and the greatest code."""
    half = 1 << (bits - 1)
    return (-half, half - 1) if symmetric else (0, 2 * half - 1)


Span = tuple[int, int]
Rule = Callable[[Tensor, Tensor, Span, float], tuple[Tensor, Tensor]]


def _symmetric(low: Tensor, high: Tensor, span: Span, shrink: float) -> tuple[Tensor, Tensor]:
    scale = _positive(torch.maximum(-low, high) * shrink / max(span[1], 1))
    return scale, torch.zeros_like(scale)


def _integer(low: Tensor, high: Tensor, span: Span, shrink: float) -> tuple[Tensor, Tensor]:
    low, high = low.clamp_max(0) * shrink, high.clamp_min(0) * shrink
    scale = _positive((high - low) / span[1])
    return scale, (-low / scale).round()


def _free(low: Tensor, high: Tensor, span: Span, shrink: float) -> tuple[Tensor, Tensor]:
    middle, half = (low + high) / 2, (high - low) / 2 * shrink
    scale = _positive(torch.where(half > 0, 2 * half, middle.abs()) / span[1])
    # A constant group is its one value: the first or the last code.
    constant = torch.where(middle < 0, float(span[1]), 0.0)
    return scale, torch.where(half > 0, (half - middle) / scale, constant)


def _scales(values: Tensor, mass: Tensor | None, span: Span, rule: Rule, steps: int) -> tuple[Tensor, Tensor]:
    """Where there is a search, some groups at a time, which stay in the cache."""
    if steps == 0 or values.numel() == 0:
        return rule(*_range(values), span, 1.0)
    groups = values.flatten(0, 1)
    most = CHUNK if values.device.type == "cpu" else DEVICE_CHUNK
    count = max(most // max(values.shape[2], 1), 1)
    parts = groups.split(count)
    masses = [None] * len(parts) if mass is None else mass.flatten(0, 1).split(count)
    found = [_best(part, some, span, rule, steps) for part, some in zip(parts, masses, strict=True)]
    scale, zero = (torch.cat(each).view(*values.shape[:2], 1) for each in zip(*found, strict=True))
    return scale, zero


def _best(values: Tensor, mass: Tensor | None, span: Span, rule: Rule, steps: int) -> tuple[Tensor, Tensor]:
    low, high = _range(values)
    scale, zero = rule(low, high, span, 1.0)
    error = torch.full_like(scale, torch.inf)
    for step in range(steps + 1):
        trial, trial_zero = rule(low, high, span, 1.0 - (1.0 - SMALLEST) * step / steps)
        for _ in range(REFITS + 1):
            trial_error, refitted = _fitted(values, mass, trial, trial_zero, span)
            better = trial_error < error
            scale, zero = torch.where(better, trial, scale), torch.where(better, trial_zero, zero)
            error = torch.where(better, trial_error, error)
            trial = refitted
    return scale, zero


def _fitted(values: Tensor, mass: Tensor | None, scale: Tensor, zero: Tensor, span: Span) -> tuple[Tensor, Tensor]:
    """The squared error, and the scale of least error for the same codes."""
    steps = _codes(values, scale, zero, span).sub_(zero)
    off = (steps * scale).sub_(values)
    weighted = steps if mass is None else steps * mass
    energy = (weighted * steps).sum(-1, keepdim=True)
    fitted = scale - (weighted * off).sum(-1, keepdim=True) / energy
    error = off.square_() if mass is None else off.square_().mul_(mass)
    fits = (fitted > 0) & (fitted < torch.inf)  # and not where it is NaN, for want of energy
    return error.sum(-1, keepdim=True), torch.where(fits, fitted, scale)


def _codes(values: Tensor, scale: Tensor, zero: Tensor, span: Span) -> Tensor:
    """Codes as float32."""
    return (values / scale).add_(zero).round_().clamp_(*span)


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)


def _range(values: Tensor) -> tuple[Tensor, Tensor]:
    if values.numel() == 0:
        nothing = values.sum(-1, keepdim=True)
        return nothing, nothing
    return values.amin(dim=-1, keepdim=True), values.amax(dim=-1, keepdim=True)


def _grouped(flat: Tensor, size: int) -> Tensor:
    """(N, K / size, size) of (N, ...); per tensor, `size` is that of all."""
    rows = flat.shape[0]
    return flat.reshape(rows, flat.shape[1:].numel() // size, size)


def _spread(importance: Tensor, weight: Tensor) -> Tensor:
    mass = importance.detach().to(weight.device).float()
    if weight.shape[0] and mass.ndim == 1 and mass.shape[0] == weight[0].numel():
        mass = mass.expand(weight.shape[0], -1).reshape(weight.shape)
    if mass.shape != weight.shape:
        raise UsageError(f"importance of shape {tuple(importance.shape)} for a weight {tuple(weight.shape)}")
    if not (bool(torch.isfinite(mass).all()) and bool((mass >= 0).all())):
        raise UsageError("importance has negative, infinite or NaN values")
    return mass


def _check(weight: Tensor, bits: int, per: str, group_size: int | None) -> int:
    """The group size in columns."""
    if not weight.is_floating_point() or weight.ndim == 0:
        raise UsageError(f"a weight of type {weight.dtype} and shape {tuple(weight.shape)} has no grid")
    if not 2 <= bits <= 8:
        raise UsageError(f"a grid of {bits} bits", hint="2 to 8")
    check_finite(weight)
    if per == "tensor":
        if group_size is not None:
            raise UsageError("groups of inputs with one scale per tensor", hint='per="channel"')
        return max(int(weight.numel()), 1)
    columns = int(weight[0].numel()) if weight.shape[0] else 0
    size = max(columns, 1) if group_size is None else group_size
    if size < 1 or columns % size:
        raise UsageError(f"groups of {size} inputs in {columns}", hint="a divisor of the flattened inputs")
    return size
