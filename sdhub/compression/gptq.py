"""GPTQ (Frantar et al., arXiv 2210.17323) for any palette or grid: rounding that makes up for its own errors.

The weights of a row are chosen so that the layer's outputs change least, ‖X(Ŵ − W)ᵀ‖² = tr E H Eᵀ with E = W − Ŵ
and the Gram matrix H = XᵀX: column after column, each on the target that makes up for errors made before.
With H = L Lᵀ the target of column i is w_i + Σ_j>i (L_ji / L_ii) e_j when columns are taken from the last to the
first. That is GPTQ as Babai's nearest plane (Chen et al., arXiv 2507.18553): it needs one Cholesky factor and no
inverse. Afterwards single weights may be chosen anew, given all others (coordinate descent).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from sdhub.compression.affine import Grid, check_finite
from sdhub.compression.columns import Picker, picker
from sdhub.compression.formats import Levels
from sdhub.compression.gram import Gram, blocks_of, damp_, factor
from sdhub.compression.palettize import Palette
from sdhub.core.errors import UsageError

Codebook = TypeVar("Codebook", Palette, Grid, Levels)
ColumnOrder = Literal["natural", "energy"]

BLOCK = 128  # the paper's
# For speed alone, measured in docs/compression.md.
SPAN = 256  # columns whose energy is taken at once
FEW = 16  # columns whose errors are handed on one by one


def gptq(
    weight: Tensor,
    codebook: Codebook,
    gram: Gram,
    *,
    damping: float = 0.01,
    order: ColumnOrder = "energy",
    passes: int = 0,
    block: int = BLOCK,
) -> Codebook:
    """`codebook` with the codes that change the layer's outputs least; tables, scales and size stay.

    `weight`: (N, K) of a Linear or (N, C, kh, kw) of a Conv2d, whose inputs are unfolded patches. `codebook`: what
    `palettize`, `affine.quantize` or `formats.nvfp4` made of it. `gram`: of the layer's inputs, one matrix or
    diagonal blocks (see `gram`). `damping`: share of its mean diagonal that is added, by default the paper's.
    `order`: which columns come first, "energy" those with the largest inputs. `passes` of coordinate descent
    follow. `block`: columns between two updates of the rest; it changes the speed only. The matrices are
    multiplied on the weight's device; codes are chosen on the CPU and end on the codebook's.

    In the damped Gram matrix no row's error is greater than that of its codes in `codebook`, those of
    round-to-nearest. The work is about N K² + K³ / 6 multiplications, and N K² more for each pass; memory, three
    times a block of the Gram matrix with that itself. Deterministic. Raises UsageError where shapes do not fit or
    something is not finite.
    """
    flat = _check(weight, codebook)
    pick = picker(codebook)
    plain = codebook.dequantize().flatten(1).to(flat.device)
    codes = _codes(codebook).flatten(1).to("cpu", copy=True)
    first = 0
    for matrix in blocks_of(gram, flat.shape[1], flat.device):
        span = slice(first, first + matrix.shape[0])
        part = _Block(flat[:, span], plain[:, span], pick, first, matrix, damping, order, block)
        part.solve(codes[:, span], passes)
        first = span.stop
    return _with_codes(codebook, codes.view(_codes(codebook).shape).to(_codes(codebook).device))


def output_error(weight: Tensor, approximation: Tensor, gram: Gram) -> float:
    """‖X(Ŵ − W)ᵀ‖ / ‖XWᵀ‖ of two weights (N, ...) from the Gram matrix of X (its blocks, where it has several)."""
    flat, off = weight.float().flatten(1), (approximation.float() - weight.float()).flatten(1)
    noise, signal, first = 0.0, 0.0, 0
    for block in blocks_of(gram, flat.shape[1], flat.device):
        span = slice(first, first + block.shape[0])
        noise += float(((off[:, span] @ block) * off[:, span]).sum(dtype=torch.float64))
        signal += float(((flat[:, span] @ block) * flat[:, span]).sum(dtype=torch.float64))
        first = span.stop
    return (max(noise, 0.0) / signal) ** 0.5 if signal > 0 else 0.0


class _Block:
    """One diagonal block: columns from `first`, all N rows; columns first in memory, so (K, N).

    Products with many columns are made on the weight's device, what is done column by column on the CPU.
    """

    def __init__(
        self,
        weight: Tensor,
        plain: Tensor,
        pick: Picker,
        first: int,
        matrix: Tensor,
        damping: float,
        order: ColumnOrder,
        block: int,
    ) -> None:
        # Columns are taken from the last to the first.
        diagonal = matrix.diagonal().cpu()
        natural = torch.arange(len(diagonal) - 1, -1, -1)
        self.order = diagonal.argsort(stable=True) if order == "energy" else natural
        there = self.order.to(matrix.device)
        self.matrix = damp_(matrix.detach()[there[:, None], there].float(), damping)
        self.target = weight.T[there].contiguous()
        self.plain = plain.T[there]
        self.columns = [first + int(column) for column in self.order]
        self.pick = pick
        self.block = block

    def solve(self, codes: Tensor, passes: int) -> None:
        """Write the codes of this block into `codes` (N / d, K)."""
        ratio = factor(self.matrix)
        pivots = ratio.diagonal().clone()
        ratio /= pivots
        error, chosen, energy = self._descend(ratio, pivots)
        for _ in range(passes):
            self._improve(error, chosen)
        limit = _energy(ratio, pivots, self.target - self.plain)
        if passes:
            energy = _energy(ratio, pivots, error)
        better = self.pick.bundled(energy.cpu()) < self.pick.bundled(limit.cpu())
        places = codes[:, self.order]
        codes[:, self.order] = torch.where(better[:, None], chosen.T, places)

    def _descend(self, ratio: Tensor, pivots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Errors (K, N) and codes (K, N / d), each column making up for earlier ones, and eᵀ H e of each row."""
        error = torch.zeros_like(self.target)
        energy = torch.zeros(error.shape[1])
        chosen = torch.empty(len(error), self.pick.codes, dtype=self.pick.dtype)
        for start, stop in _spans(0, len(error), self.block):
            here = slice(start, stop)
            wanted = torch.addmm(self.target[here], ratio[stop:, here].T, error[stop:]).cpu()
            target, own, off = (each.cpu() for each in (self.target[here], ratio[here, here], error[here]))
            weights = pivots[here].cpu()
            for low, high in _spans(0, stop - start, FEW):
                part = wanted[low:high]
                part.addmm_(own[high:, low:high].T, off[high:])
                local = own[low:high, low:high].T.numpy()
                place = (part.numpy(), local, off[low:high].numpy(), chosen[here][low:high].numpy())
                self._place(*place, target[low:high].numpy(), start + low)
                energy += part.mul_(weights[low:high, None]).square_().sum(dim=0)
            _give_back(off, error[here])
        return error, chosen, energy

    def _place(self, wanted: Any, local: Any, error: Any, chosen: Any, target: Any, low: int) -> None:
        """Few columns from `low` on; of `wanted` is left what they miss it by. Threads would cost more than they
        bring."""
        for here in range(len(error) - 1, -1, -1):
            after = slice(here + 1, len(error))
            aim = wanted[here] + np.einsum("k,kn->n", local[here, after], error[after])
            chosen[here], value = self.pick.nearest(self.columns[low + here], aim)
            np.subtract(target[here], value, out=error[here])
            np.subtract(aim, value, out=wanted[here])

    def _improve(self, error: Tensor, chosen: Tensor) -> None:
        """One pass of coordinate descent over all columns; never raises a row's error."""
        for start, stop in _spans(0, len(error), self.block):
            here = slice(start, stop)
            slope = (self.matrix[here] @ error).cpu()
            target, own, off = (each.cpu() for each in (self.target[here], self.matrix[here, here], error[here]))
            for low, high in _spans(0, stop - start, FEW):
                part, before = slope[low:high], off[low:high].clone()
                local = own[low:high, low:high].numpy()
                place = (part.numpy(), local, off[low:high].numpy(), chosen[here][low:high].numpy())
                self._replace(*place, target[low:high].numpy(), start + low)
                slope[:low].addmm_(own[:low, low:high], off[low:high] - before)
            _give_back(off, error[here])

    def _replace(self, slope: Any, local: Any, error: Any, chosen: Any, target: Any, low: int) -> None:
        held = target - error
        for here in range(len(error) - 1, -1, -1):
            aim = slope[here] / local[here, here]
            aim += held[here]
            chosen[here], value = self.pick.nearest(self.columns[low + here], aim)
            change = held[here] - value
            if here and change.any():
                slope[:here] += local[:here, here, None] * change
            held[here] = value
        np.subtract(target, held, out=error)


def _give_back(values: Tensor, place: Tensor) -> None:
    """Put what was worked out on the CPU where it came from; there it is the same memory."""
    if place.device != values.device:
        place.copy_(values)


def _spans(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Runs of at most `size`, the last first."""
    return [(max(end - size, start), end) for end in range(stop, start, -size)]


def _energy(ratio: Tensor, pivots: Tensor, error: Tensor) -> Tensor:
    """eᵀ H e for each column e of `error` (K, N), where H = L Lᵀ and L = `ratio` · diag(`pivots`)."""
    energy = error.new_zeros(error.shape[1])
    for start, stop in _spans(0, len(error), SPAN):  # above the diagonal there is nothing to multiply
        energy += (ratio[start:, start:stop].T @ error[start:]).mul_(pivots[start:stop, None]).square_().sum(dim=0)
    return energy


def _codes(codebook: Palette | Grid | Levels) -> Tensor:
    return codebook.indices if isinstance(codebook, Palette) else codebook.codes


def _with_codes(codebook: Codebook, codes: Tensor) -> Codebook:
    name = "indices" if isinstance(codebook, Palette) else "codes"
    changed: Codebook = replace(codebook, **{name: codes})
    return changed


def _check(weight: Tensor, codebook: Palette | Grid | Levels) -> Tensor:
    """The weight as (N, K), float32."""
    if weight.ndim < 2 or not weight.is_floating_point():
        raise UsageError(f"a weight of type {weight.dtype} and shape {tuple(weight.shape)} has no inputs")
    rows = codebook.cluster_dim if isinstance(codebook, Palette) else 1
    shape = (weight.shape[0] // rows, *weight.shape[1:])
    if _codes(codebook).shape != shape:
        raise UsageError(f"codes of shape {tuple(_codes(codebook).shape)} for a weight {tuple(weight.shape)}")
    check_finite(weight)
    return weight.detach().float().flatten(1)
