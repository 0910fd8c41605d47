"""Low-rank branches: randomized truncated SVD, and `W ≈ up @ down + Q(R)` with least error of a layer's outputs.

Sources: Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53 (2011), for the SVD, with
the shifts of Feng, Yu, Xie and Tang, "Faster randomized SVD with dynamic shifts", arXiv 2404.09276; Li et al.,
"SVDQuant", arXiv 2411.05007, for a low-rank branch beside a quantized residual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdhub.compression.gram import Gram, blocks_of, factor
from sdhub.core.errors import UsageError


@dataclass(frozen=True)
class LowRank:
    """A matrix (N, K) of rank r: `up` (N, r) times `down` (r, K), float32, columns and rows of equal norm.

    `singular_values` (r,) float32, descending. `subspace` (K, r + oversample), orthonormal columns: what the rows
    of the matrix mostly lie in; the start of the next decomposition of a matrix that is nearly the same.
    """

    up: Tensor
    down: Tensor
    singular_values: Tensor
    subspace: Tensor

    def dense(self) -> Tensor:
        """The product (N, K)."""
        return self.up @ self.down


@dataclass(frozen=True)
class Decomposition:
    """`W ≈ low_rank.dense() + residual`.

    `residual` (N, K) float32 is dequantized: what `quantize(target)` gave, so the same quantizer applied to
    `target` gives its codes again. `error` is ‖(W − L − residual) D‖ / ‖W D‖ with D Dᵀ the (damped) Gram matrix:
    relative error of the layer's outputs. `history` has that error after every round, `error` is its least.
    """

    low_rank: LowRank
    residual: Tensor
    target: Tensor
    error: float
    history: tuple[float, ...] = ()


def randomized_svd(
    matrix: Tensor,
    rank: int,
    *,
    oversample: int = 16,
    power_iterations: int = 16,
    tolerance: float = 3e-4,
    start: Tensor | None = None,
) -> LowRank:
    """Truncated SVD of `matrix` (N, K), any float dtype, by at most `power_iterations` QR-stabilised power steps.

    The steps are those of AᵀA − shift (Feng et al. 2024), which separates a flat spectrum in about half as
    many. They end once one lowers the relative error by less than `tolerance`; with the defaults the Frobenius
    error is then within 1.001 of the exact truncation even for Gaussian matrices. `start` (K, any width) replaces
    as many of the `rank + oversample` random starting directions (`LowRank.subspace` of a matrix nearby). Same
    input, same result.

    Raises UsageError for a rank outside 1 to min(N, K) and for values that are not finite.
    """
    matrix, total = _checked(matrix, rank)
    inputs = _starting_subspace(matrix, min(rank + oversample, *matrix.shape), start)
    captured = shift = 0.0
    for step in range(power_iterations + 1):
        outputs = matrix @ inputs
        squares = torch.linalg.eigvalsh((outputs.T @ outputs).double())
        before, captured = captured, float(squares[-rank:].sum())
        if step == power_iterations or captured - before <= 2 * tolerance * (total - captured):
            break
        # Half of a lower bound of the last eigenvalue sought is the most that keeps it above all smaller ones.
        shift = max(shift, float(squares[0]) / 2)
        inputs = torch.linalg.qr(matrix.T @ outputs - shift * inputs).Q
    basis, upper = torch.linalg.qr(outputs)
    left, values, right = torch.linalg.svd(upper.double())
    root = values[:rank].sqrt()
    up = basis @ (left[:, :rank] * root).float()
    down = (root[:, None] * right[:rank]).float() @ inputs.T
    return LowRank(up, down, values[:rank].float(), inputs)


def nearest_branch(
    matrix: Tensor,
    rank: int,
    *,
    gram: Gram | None = None,
    damping: float = 0.01,
    start: Tensor | None = None,
) -> LowRank:
    """The L of rank `rank` that takes most of `matrix` (N, K) off a layer's outputs: least ‖(matrix − L) D‖.

    `gram` and `damping` as in `decompose`, of which this is the closed form for a residual that is settled;
    `start` as in `randomized_svd`.
    """
    matrix, _ = _checked(matrix, rank)
    root = _root(gram, matrix, damping)
    fit = randomized_svd(root.times(matrix), rank, start=start)
    return _balanced(fit, root.undo(fit.down))


def decompose(
    weight: Tensor,
    rank: int,
    quantize: Callable[[Tensor], Tensor],
    *,
    gram: Gram | None = None,
    damping: float = 0.01,
    iterations: int = 20,
    patience: int = 3,
) -> Decomposition:
    """`weight` (N, K) as a low-rank branch plus a quantized residual, with least error of the layer's outputs.

    Alternates Q = quantize(W − L) and the closed form L = SVD_r((W − Q) D) D⁻¹, where D Dᵀ is `gram`: None for
    the identity, (K,) the mean squares of the inputs, (K, K) their Gram matrix, or a sequence of its diagonal
    blocks. (The Cholesky factor serves as D: any root of the Gram matrix gives the same L, and this one costs a
    tenth of the symmetric root.) `damping`, a share of its mean diagonal, is added to the diagonal, so that
    directions that calibration hardly saw keep a weight. `quantize` takes and gives (N, K) float32, dequantized.

    The first round starts from the plain SVD of W, so the result is never worse than that with its residual
    rounded. Each round is one product (N, K) by (K, K), one quantization and a warm-started SVD. Stops after
    `patience` rounds without a better one, and at `iterations`; what that reaches is in benchmarks/RESULTS.md
    (lowrank).

    Raises UsageError for a rank outside 1 to min(N, K), values that are not finite, a Gram matrix of other shape.
    """
    weight, _ = _checked(weight, rank)
    rounds = _rounds(weight, rank, quantize, _root(gram, weight, damping))
    best = next(rounds)
    errors, stale = [best.error], 0
    while len(errors) < iterations and stale < patience:
        latest = next(rounds)
        errors.append(latest.error)
        stale = 0 if latest.error < best.error else stale + 1
        best = latest if stale == 0 else best
    return replace(best, history=tuple(errors))


def _rounds(
    weight: Tensor, rank: int, quantize: Callable[[Tensor], Tensor], root: _Root
) -> Iterator[Decomposition]:
    norm = math.sqrt(_energy(root.times(weight)))
    branch = randomized_svd(weight, rank)
    start: Tensor | None = None
    while True:
        target = weight - branch.dense()
        residual = quantize(target).to(torch.float32)
        weighted = root.times(weight - residual)
        fit = randomized_svd(weighted, rank, start=start)
        error = math.sqrt(_energy(weighted - fit.dense())) / norm if norm else 0.0
        branch, start = _balanced(fit, root.undo(fit.down)), fit.subspace
        yield Decomposition(branch, residual, target, error)


def _balanced(fit: LowRank, down: Tensor) -> LowRank:
    """`fit.up @ down` with columns and rows of equal norm, so that neither factor leaves the range of float16."""
    ratio = (torch.linalg.vector_norm(fit.up, dim=0) / torch.linalg.vector_norm(down, dim=1)).sqrt()
    ratio = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)
    return replace(fit, up=fit.up / ratio, down=down * ratio[:, None])


@dataclass(frozen=True)
class _Root:
    """D: diagonal blocks, each a vector (its own diagonal) or lower triangular."""

    blocks: tuple[Tensor, ...]

    def times(self, matrix: Tensor) -> Tensor:
        """`matrix` (N, K) times D."""
        return self._by_blocks(matrix, _multiply)

    def undo(self, matrix: Tensor) -> Tensor:
        """`matrix` (r, K) times the inverse of D."""
        return self._by_blocks(matrix, _divide)

    def _by_blocks(self, matrix: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        parts = matrix.split([block.shape[0] for block in self.blocks], dim=1)
        return torch.cat([function(part, block) for part, block in zip(parts, self.blocks, strict=True)], dim=1)


def _multiply(part: Tensor, block: Tensor) -> Tensor:
    return part * block if block.ndim == 1 else part @ block


def _divide(part: Tensor, block: Tensor) -> Tensor:
    if block.ndim == 1:
        return part / block
    return torch.linalg.solve_triangular(block, part, upper=False, left=False)


def _root(gram: Gram | None, weight: Tensor, damping: float) -> _Root:
    columns = weight.shape[1]
    if gram is None:
        return _Root((torch.ones(columns, device=weight.device),))
    if isinstance(gram, Tensor) and gram.shape == (columns,):
        blocks: tuple[Tensor, ...] = (gram,)
    else:
        blocks = blocks_of(gram, columns, weight.device)
    blocks = tuple(block.to(weight.device, torch.float32) for block in blocks)
    if not all(bool(torch.isfinite(block).all()) for block in blocks):
        raise UsageError("the Gram matrix has values that are not finite")
    mean = float(torch.cat([block if block.ndim == 1 else block.diagonal() for block in blocks]).double().mean())
    return _Root(tuple(_block_root(block / (mean or 1.0), damping) for block in blocks))


def _block_root(block: Tensor, damping: float) -> Tensor:
    """The square root of a damped diagonal (a vector), or the Cholesky factor of a damped block, float32."""
    if block.ndim == 1:
        return (block + damping).sqrt()
    return factor(block + damping * torch.eye(len(block), device=block.device))


def _starting_subspace(matrix: Tensor, width: int, start: Tensor | None) -> Tensor:
    columns = matrix.shape[1]
    random = torch.randn(columns, width, generator=torch.Generator().manual_seed(0)).to(matrix.device)
    if start is not None and start.shape[0] != columns:
        raise UsageError(f"a starting subspace of {start.shape[0]} rows for a matrix of {columns} columns")
    warm = random[:, :0] if start is None else start[:, :width].to(matrix)
    return torch.linalg.qr(torch.cat([warm, random[:, warm.shape[1] :]], dim=1)).Q


def _energy(values: Tensor) -> float:
    """The sum of squares; by rows first, where float32 is precise enough and several times faster."""
    return float(torch.linalg.vector_norm(values, dim=-1).double().square().sum())


def _checked(matrix: Tensor, rank: int) -> tuple[Tensor, float]:
    """The matrix as float32 and its sum of squares."""
    if matrix.ndim != 2 or not 1 <= rank <= min(matrix.shape):
        raise UsageError(f"rank {rank} of a tensor of shape {tuple(matrix.shape)}", hint="1 to min(N, K)")
    matrix = matrix.to(torch.float32)
    total = _energy(matrix)
    if not math.isfinite(total):
        raise UsageError("the matrix has values that are not finite")
    return matrix, total
