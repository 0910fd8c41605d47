"""Gram matrices of layer inputs: H = Σ xxᵀ over rows x of K inputs, as diagonal blocks.

A matrix is one block; a layer too wide for that has several, in order, which together are K wide, as
`calibration.LayerStatistics.gram` gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from sdhub.core.errors import UsageError

Gram: TypeAlias = "Tensor | Sequence[Tensor]"

RAISES = 4  # times that the diagonal is raised, tenfold each, from about float32's precision on


def blocks_of(gram: Gram, columns: int, device: torch.device) -> tuple[Tensor, ...]:
    """The blocks of `gram`, on `device`. Raises UsageError if they are not square, finite and `columns` wide
    together."""
    blocks = tuple(block.to(device) for block in ((gram,) if isinstance(gram, Tensor) else gram))
    for block in blocks:
        if block.ndim != 2 or block.shape[0] != block.shape[1]:
            raise UsageError(f"a Gram matrix of shape {tuple(block.shape)} is not square")
        if not bool(torch.isfinite(block.diagonal()).all()) or bool((block.diagonal() < 0).any()):
            raise UsageError("a Gram matrix has a negative, infinite or NaN diagonal")
    width = sum(block.shape[0] for block in blocks)
    if width != columns:
        raise UsageError(f"a Gram matrix {width} wide for a weight of {columns} flattened inputs")
    return blocks


def divided(gram: Gram, width: int) -> tuple[Tensor, ...]:
    """Diagonal blocks at most `width` wide of each block of `gram`: faster, and blind to what lies outside."""
    blocks = (gram,) if isinstance(gram, Tensor) else tuple(gram)
    return tuple(
        block[start : start + width, start : start + width]
        for block in blocks
        for start in range(0, block.shape[0], width)
    )


def damped(block: Tensor, damping: float) -> Tensor:
    """A float32 copy of `block`, damped as by `damp_`."""
    return damp_(block.detach().to(torch.float32, copy=True), damping)


def damp_(block: Tensor, damping: float) -> Tensor:
    """`block`, after `damping` times the mean of its diagonal is added to the diagonal.

    Inputs that are always 0 get the mean itself, so that the matrix is positive definite.
    """
    diagonal = block.diagonal()
    mean = float(diagonal.double().mean()) if len(diagonal) else 0.0
    if mean <= 0:
        return block.fill_diagonal_(1.0)
    diagonal.add_(torch.where(diagonal > 0, damping * mean, mean))
    return block


def factor(block: Tensor) -> Tensor:
    """The Cholesky factor L of H = L Lᵀ, float32 lower triangular.

    Where float32 is too coarse it is computed in float64, then with the diagonal raised by a millionth of its
    mean, and up to four times tenfold that. Raises UsageError for a matrix that is not positive semidefinite.
    """
    lower, failed = torch.linalg.cholesky_ex(block)
    if not int(failed):
        return lower
    exact = block.double()
    step = 1e-6 * float(exact.diagonal().mean())
    for attempt in range(RAISES + 1):
        lower, failed = torch.linalg.cholesky_ex(exact)
        if not int(failed):
            return lower.float()
        exact.diagonal().add_(step * 10**attempt)
    raise UsageError(
        f"a Gram matrix of width {block.shape[0]} is not positive semidefinite", hint="calibrate on more tokens"
    )
