"""SmoothQuant: the range of activations moved into the weights, channel by channel, before both are quantized.

A linear layer computes (x / s) (W s)ᵀ for any positive s (K,). Xiao et al., "SmoothQuant", arXiv 2211.10438, take
s = absmax(x)^α / absmax(W)^(1−α); Li et al., "SVDQuant", arXiv 2411.05007, search α and β of
s = absmax(x)^α / absmax(W)^β for the least error of the layer's outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from sdhub.compression.affine import check_finite
from sdhub.core.errors import UsageError

Quantize = Callable[[Tensor], Tensor]
Build = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]

# Factors are stored in 16 bits: float16's normal numbers.
LEAST, MOST = 2.0**-14, 65504.0


@dataclass(frozen=True)
class Smoothing:
    """The factors chosen, and what they cost.

    `factors` (K,) float32: inputs are divided by them, the weight's columns multiplied. `error`, `unsmoothed`:
    ‖Y − Ŷ‖ / ‖Y‖ of the layer's outputs on the sampled tokens, with these factors and with s = 1; never
    `error > unsmoothed`. `scored`: (α, β) and that error of every finalist, best first.
    """

    alpha: float
    beta: float
    factors: Tensor
    error: float
    unsmoothed: float
    scored: tuple[tuple[float, float, float], ...]


def smoothing_factors(input_absmax: Tensor, weight_absmax: Tensor, alpha: float, beta: float) -> Tensor:
    """s = absmax(x)^α / absmax(W)^β, (K,) float32, from the ranges (K,) of input channels and weight columns.

    1 where either range is zero, else within the normal numbers of float16.
    """
    factors = input_absmax.double() ** alpha / weight_absmax.double() ** beta
    silent = (input_absmax <= 0) | (weight_absmax <= 0)
    return torch.where(silent, 1.0, factors.clamp(LEAST, MOST)).float()


def exponents(points: int = 20) -> tuple[tuple[float, float], ...]:
    """SVDQuant's grid of (α, β): (0, 0), and (a, 0) and (a, 1 − a) for a = 1/points … 1 − 1/points."""
    grid = [index / points for index in range(1, points)]
    return ((0.0, 0.0), *((a, 0.0) for a in grid), *((a, round(1 - a, 12)) for a in grid))


def search_smoothing(
    weight: Tensor,
    tokens: Tensor,
    quantize_weight: Quantize,
    *,
    quantize_input: Quantize | None = None,
    input_absmax: Tensor | None = None,
    weight_absmax: Tensor | None = None,
    build: Build | None = None,
    points: int = 20,
    finalists: int = 4,
) -> Smoothing:
    """The smoothing factors of `weight` (N, K) with least output error on `tokens` (T, K).

    All of `exponents(points)` are screened by a proxy: the squared output error that quantizing the weight
    (`quantize_weight`, (N, K) to dequantized (N, K)) and the inputs (`quantize_input`, (T, K) likewise; None
    leaves them) would cause if channels were independent. The best `finalists` and s = 1 are then scored on the
    tokens, so the result is never worse than no smoothing. `input_absmax` (K,): ranges over more than the tokens,
    `weight_absmax` over more rows than `weight` has.

    `build(smoothed weight, factors)` gives what a finalist is scored with: the dequantized weight that meets the
    quantized inputs, and a low-rank part (N, K) or None that meets the smoothed ones as they are. Left out, it is
    `quantize_weight` without a low-rank part.

    Raises UsageError for shapes that do not fit and values that are not finite.
    """
    weight, tokens = weight.to(torch.float32), tokens.to(weight.device, torch.float32)
    _check(weight, tokens)
    peaks = tokens.abs().amax(dim=0) if input_absmax is None else input_absmax.to(weight.device, torch.float32)
    columns = weight.abs().amax(dim=0) if weight_absmax is None else weight_absmax.to(weight)
    inputs = quantize_input or _unchanged
    parts = build or (lambda smoothed, _: (quantize_weight(smoothed), None))
    candidates = {pair: smoothing_factors(peaks, columns, *pair) for pair in exponents(points)}

    def proxy(pair: tuple[float, float]) -> float:
        factors = candidates[pair]
        return _proxy(weight * factors, tokens / factors, quantize_weight, inputs)

    def error(pair: tuple[float, float]) -> float:
        factors = candidates[pair]
        return _output_error(outputs, tokens / factors, inputs, *parts(weight * factors, factors))

    outputs = tokens @ weight.T
    # s = 1 comes first, so that it wins a tie.
    shortlist = dict.fromkeys([(0.0, 0.0), *sorted(candidates, key=proxy)[:finalists]])
    scored = sorted(((*pair, error(pair)) for pair in shortlist), key=itemgetter(2))
    unsmoothed = next(each[2] for each in scored if each[:2] == (0.0, 0.0))
    alpha, beta, least = scored[0]
    return Smoothing(alpha, beta, candidates[alpha, beta], least, unsmoothed, tuple(scored))


def _proxy(weight: Tensor, tokens: Tensor, quantize_weight: Quantize, quantize_input: Quantize) -> float:
    """Σ over channels of E[x²] ‖ΔW‖² + E[Δx²] ‖W‖²."""
    weight_error = (weight - quantize_weight(weight)).square().sum(dim=0)
    input_error = (tokens - quantize_input(tokens)).square().mean(dim=0)
    from_weight = tokens.square().mean(dim=0) @ weight_error
    return float(from_weight + input_error @ weight.square().sum(dim=0))


def _output_error(
    outputs: Tensor, tokens: Tensor, quantize_input: Quantize, residual: Tensor, branch: Tensor | None
) -> float:
    given = quantize_input(tokens) @ residual.T
    if branch is not None:
        given = given + tokens @ branch.T
    norm = float(torch.linalg.vector_norm(outputs, dtype=torch.float64))
    return float(torch.linalg.vector_norm(outputs - given, dtype=torch.float64)) / norm if norm else 0.0


def _unchanged(values: Tensor) -> Tensor:
    return values


def _check(weight: Tensor, tokens: Tensor) -> None:
    if weight.ndim != 2 or tokens.ndim != 2 or weight.shape[1] != tokens.shape[1] or not tokens.numel():
        raise UsageError(f"tokens {tuple(tokens.shape)} do not fit a weight {tuple(weight.shape)}")
    check_finite(weight)
    if not bool(torch.isfinite(tokens).all()):
        raise UsageError("the tokens have values that are not finite")
