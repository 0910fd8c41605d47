"""SVDQuant for linear layers of 4-bit weights and 4-bit inputs, in closed form.

A layer gives `a Qᵀ + x Lᵀ`: x (T, K) are its smoothed inputs, a what rounding makes of them, Q the 4-bit residual,
L of rank r. Rounding is taken for a gain and a noise per channel (Bussgang, 1952): a ≈ c x + n, with the noise's
variance v. With H = E[xᵀx], C = E[xᵀa] = H diag(c) and A = E[aᵀa] = diag(c) H diag(c) + diag(v):

- the part of W that goes through 4 bits loses at least tr T (H − C A⁻¹ Cᵀ) Tᵀ, T = W − L, whatever Q is: L is the
  SVD of W in that metric, which is what takes the outliers in;
- the best Q is T C A⁻¹, rounded by GPTQ in the metric A;
- given Q, the best L is the SVD of W − Q Cᵀ H⁻¹ in the metric H.

Source of the layer: Li et al., "SVDQuant", arXiv 2411.05007, who alternate plain SVD and rounding instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdhub.compression.affine import Grid
from sdhub.compression.formats import Levels
from sdhub.compression.gptq import gptq
from sdhub.compression.gram import damped, divided, factor
from sdhub.compression.lowrank import LowRank, nearest_branch, randomized_svd
from sdhub.compression.smoothquant import Smoothing, search_smoothing
from sdhub.compression.w4a4 import SHIFT, Precision, linear, rounded_inputs, rounded_weight
from sdhub.core.errors import UsageError

Rounded = Callable[[Tensor], Tensor]

# Measured in docs/compression.md one by one, and together in benchmarks/RESULTS.md (svdquant).
BLOCK = 1280  # the widest diagonal block of the Gram matrix
DAMPING = 0.003
FLOOR = 1e-6  # of the mean input energy, the least that a channel counts in a metric
POINTS, FINALISTS = 10, 2  # grid points of an exponent, as in DeepCompressor's fast profile; candidates scored
JUDGED = 256  # outputs that smoothing is chosen by, or a few more
SEARCH = 4  # smaller scales that are tried for a group of the residual
REACH = 2.0**14  # the greatest smoothed input, so that 16 bits hold it


@dataclass(frozen=True)
class Inputs:
    """Statistics of a layer's inputs: `gram`, diagonal blocks of the sum of xxᵀ over `rows` inputs of K channels,
    `tokens` (T, K) of them, and `absmax` (K,) over all; `total` (K,) is the sum of x over the rows."""

    gram: Sequence[Tensor]
    rows: int
    tokens: Tensor
    absmax: Tensor
    total: Tensor | None = None

    def on(self, device: torch.device) -> Inputs:
        """The same statistics on `device`."""
        total = None if self.total is None else self.total.to(device)
        blocks = [block.to(device) for block in self.gram]
        return Inputs(blocks, self.rows, self.tokens.to(device), self.absmax.to(device), total)

    def shifted(self) -> Inputs:
        """The same inputs, shifted. Raises UsageError where their `total` is not known."""
        if self.total is None:
            raise UsageError("inputs that are shifted need the sum of their rows")
        tokens = self.tokens.float()
        sums = self.total.float().split([len(block) for block in self.gram])
        moved = [
            block.float() + SHIFT * (part[:, None] + part) + self.rows * SHIFT**2
            for block, part in zip(self.gram, sums, strict=True)
        ]
        return Inputs(moved, self.rows, tokens + SHIFT, self.absmax + SHIFT)


@dataclass(frozen=True)
class Split:
    """A layer taken apart. Inputs (.., K) are divided by `smooth` (K,) and rounded, and meet `residual`; those
    that are not divided meet `down` (r, K), then `up` (N, r). All as the type asked for holds them.

    `error`: of the outputs on the calibration's tokens, rounding of the inputs included; of the weight without a
    calibration.
    """

    residual: Grid | Levels
    smooth: Tensor
    up: Tensor
    down: Tensor
    error: float

    def outputs(
        self,
        inputs: Tensor,
        precision: Precision,
        dtype: torch.dtype = torch.float16,
        *,
        shifted: bool = False,
    ) -> Tensor:
        """What the kernels make of `inputs` (T, K), without a bias: float32 (T, N); `shifted` as in `linear`."""
        residual = self.residual.dequantize()
        return linear(inputs, residual, self.smooth, self.down, self.up, precision, dtype, shifted=shifted)

    def shifted_bias(self, weight: Tensor) -> Tensor:
        """What makes up for the shift of inputs, of which `weight` (N, K) knows nothing: to be added, (N,)."""
        return SHIFT * (self.up @ self.down.sum(dim=1) - weight.sum(dim=1))


def split(
    weight: Tensor,
    rank: int,
    precision: Precision,
    inputs: Inputs | None = None,
    *,
    dtype: torch.dtype = torch.float16,
    smoothing: bool = True,
    use_gptq: bool = True,
    shifted: bool = False,
) -> Split:
    """`weight` (N, K) taken apart; `dtype`: what scales, factors and smoothing are stored in.

    Without `inputs` the residual of the SVD is rounded to nearest, and nothing is smoothed. `shifted`:
    inputs (GELU's) are shifted and their int4 codes have no sign; `inputs` are what they are before that. Raises
    UsageError for values that are not finite, a rank above min(N, K) and inputs that do not fit.
    """
    weight = weight.detach().float()
    columns = weight.shape[1]
    if inputs is None:
        plain = weight.new_ones(columns)
        branch = _branch(randomized_svd(weight, rank) if rank else None, plain, dtype)
        residual = rounded_weight(weight - branch.dense(), precision, dtype)
        norm = float(torch.linalg.vector_norm(weight))
        off = residual.dequantize() + branch.dense() - weight
        error = float(torch.linalg.vector_norm(off)) / norm if norm else 0.0
        return Split(residual, plain, branch.up, branch.down, error)
    inputs = inputs.on(weight.device)
    observed = inputs.shifted() if shifted else inputs

    def rounded(values: Tensor) -> Tensor:
        return rounded_inputs(values, precision, dtype, unsigned=shifted)

    smooth = weight.new_ones(columns)
    if smoothing:
        found = _search(weight, rank, precision, observed, dtype, rounded)
        smooth = _stored(found.factors, observed.absmax, dtype)
    layer = _smoothed(weight * smooth, observed, smooth, precision, dtype, rounded)
    first = layer.outliers(rank)
    residual = layer.residual(weight * smooth - first, use_gptq=use_gptq)
    branch = _branch(layer.rest(residual.dequantize(), rank), smooth, dtype)
    made = Split(residual, smooth, branch.up, branch.down, 0.0)
    tokens = inputs.tokens.float()
    wanted = tokens @ weight.T
    norm = float(torch.linalg.vector_norm(wanted))
    given = made.outputs(tokens, precision, dtype, shifted=shifted)
    if shifted:
        given = given + made.shifted_bias(weight)
    off = float(torch.linalg.vector_norm(given - wanted))
    return Split(residual, smooth, branch.up, branch.down, off / norm if norm else 0.0)


class _Smoothed:
    """The matrices of one layer with its smoothing; lists of diagonal blocks."""

    def __init__(
        self,
        weight: Tensor,
        tokens: Tensor,
        rounded: Tensor,
        gram: Sequence[Tensor],
        precision: Precision,
        dtype: torch.dtype,
    ) -> None:
        self.weight, self.precision, self.dtype = weight, precision, dtype
        self.widths = [len(block) for block in gram]
        energy = tokens.square().mean(dim=0)
        gain = torch.where(energy > 0, (rounded * tokens).mean(dim=0) / energy, 1.0)
        noise = (rounded - gain * tokens).square().mean(dim=0)
        self.gain = gain
        self.gram = [damped(block, DAMPING) for block in gram]
        # Channels so quiet that they are always rounded to 0 have no gain and no noise: the floor keeps A regular.
        self.noise = [
            variance + FLOOR * block.diagonal().mean()
            for block, variance in zip(self.gram, self._parts(noise), strict=True)
        ]
        self.given = [
            block * part[:, None] * part + torch.diag(variance)
            for block, part, variance in zip(self.gram, self._parts(gain), self.noise, strict=True)
        ]
        # C A⁻¹, which gives the best residual of what is left.
        self.filters = [
            torch.cholesky_solve((block * part).T, factor(given)).T
            for block, part, given in zip(self.gram, self._parts(gain), self.given, strict=True)
        ]

    def outliers(self, rank: int) -> Tensor:
        """The L (N, K) of rank `rank` without which least is lost in 4 bits."""
        if not rank:
            return torch.zeros_like(self.weight)
        lost = []
        for gram, gain, noise in zip(self.gram, self._parts(self.gain), self.noise, strict=True):
            # H - C A⁻¹ Cᵀ by Woodbury's identity: R (1 + Rᵀ diag(c² / v) R)⁻¹ Rᵀ of H = R Rᵀ, in which nothing
            # cancels.
            root = factor(gram)
            inner = root.T @ (root * (gain.square() / noise)[:, None])
            inner.diagonal().add_(1.0)
            half = torch.linalg.solve_triangular(factor(inner), root.T, upper=False)
            rest = half.T @ half
            rest.diagonal().add_(FLOOR * float(gram.diagonal().mean()))
            lost.append(rest)
        return nearest_branch(self.weight, rank, gram=lost, damping=0.0).dense()

    def residual(self, target: Tensor, *, use_gptq: bool, search: int = SEARCH) -> Grid | Levels:
        """Q of what is left, (N, K)."""
        parts = zip(target.split(self.widths, dim=1), self.filters, strict=True)
        wanted = torch.cat([part @ filtered for part, filtered in parts], dim=1)
        energy = torch.cat([block.diagonal() for block in self.given])
        importance = energy / energy.mean().clamp_min(1e-30)
        found = rounded_weight(wanted, self.precision, self.dtype, search=search, importance=importance)
        if not use_gptq:
            return found
        if isinstance(found, Grid):  # for the type checker: `gptq` gives back what it is given
            return gptq(wanted, found, self.given, damping=1e-4)
        return gptq(wanted, found, self.given, damping=1e-4)

    def rest(self, residual: Tensor, rank: int) -> LowRank | None:
        """The L of rank `rank` that makes up for `residual` best."""
        if not rank:
            return None
        return nearest_branch(self.weight - residual * self.gain, rank, gram=self.gram, damping=0.0)

    def _parts(self, values: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = values.split(self.widths)
        return parts


def _smoothed(
    smoothed: Tensor, inputs: Inputs, factors: Tensor, precision: Precision, dtype: torch.dtype, rounded: Rounded
) -> _Smoothed:
    tokens = inputs.tokens.float() / factors
    return _Smoothed(smoothed, tokens, rounded(tokens), _scaled(inputs, factors), precision, dtype)


def _search(
    weight: Tensor, rank: int, precision: Precision, inputs: Inputs, dtype: torch.dtype, rounded: Rounded
) -> Smoothing:
    """The smoothing with least error of some outputs, each candidate with its own low-rank part."""

    def build(smoothed: Tensor, factors: Tensor) -> tuple[Tensor, Tensor | None]:
        layer = _smoothed(smoothed, inputs, factors, precision, dtype, rounded)
        first = layer.outliers(rank)
        residual = layer.residual(smoothed - first, use_gptq=False, search=0).dequantize()
        rest = layer.rest(residual, rank)
        return residual, None if rest is None else rest.dense()

    return search_smoothing(
        weight[:: max(len(weight) // JUDGED, 1)],
        inputs.tokens,
        lambda values: rounded_weight(values, precision, dtype, search=0).dequantize(),
        quantize_input=rounded,
        input_absmax=inputs.absmax,
        weight_absmax=weight.abs().amax(dim=0),
        build=build,
        points=POINTS,
        finalists=FINALISTS,
    )


def _scaled(inputs: Inputs, smooth: Tensor) -> list[Tensor]:
    """Blocks of the mean of xxᵀ of smoothed inputs."""
    blocks = divided(inputs.gram, BLOCK)
    factors = smooth.split([len(block) for block in blocks])
    return [
        block.float() / (inputs.rows * part[:, None] * part) for block, part in zip(blocks, factors, strict=True)
    ]


def _stored(factors: Tensor, absmax: Tensor, dtype: torch.dtype) -> Tensor:
    """Factors of geometric mean 1 as `dtype` holds them, none so small that an input would leave its range."""
    even = factors / factors.log().mean().exp()
    return torch.maximum(even, absmax / REACH).to(dtype).float()


def _branch(found: LowRank | None, smooth: Tensor, dtype: torch.dtype) -> LowRank:
    """The factors for inputs that are not smoothed, as `dtype` holds them, both of like size."""
    if found is None:
        nothing = smooth.new_zeros(0)
        return LowRank(smooth.new_zeros(0, 0), smooth.new_zeros(0, len(smooth)), nothing, nothing)
    down = found.down / smooth
    ratio = (found.up.norm(dim=0) / down.norm(dim=1)).sqrt()
    ratio = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)
    up, down = (found.up / ratio).to(dtype).float(), (down * ratio[:, None]).to(dtype).float()
    return LowRank(up, down, found.singular_values, found.subspace)
