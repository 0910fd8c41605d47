"""Observers of layers' inputs: the statistics that calibration keeps, updated call by call in bounded memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdhub.compression.rows import Rows, layer_rows
from sdhub.core.errors import BuildError

CHUNK = 4096  # rows of a Gram update at once, for bounded memory


@dataclass(frozen=True)
class LayerStatistics:
    """The inputs of one Linear or Conv2d. All tensors on the CPU, and float32 (`tokens`: of the type asked for).

    `low`, `high`, `mean_square`: (C,) least and greatest value and mean square of each of C channels, over all
    `vectors` input vectors (tokens, or pixels before padding).
    `tokens`: (T, K), rows drawn evenly from all calls: inputs of a Linear (K = C), unfolded patches of a Conv2d
    in the order of its weight (K = C · kh · kw), so that `tokens @ weight.flatten(1).T` is what the layer gives
    before its bias, if it has one group.
    `gram`: the diagonal blocks, in order, of the sum of xxᵀ over `gram_rows` such rows; no block crosses the
    groups of a convolution. None where it was not asked for. `gram_sum`: (K,), the sum of these rows.
    """

    low: Tensor
    high: Tensor
    mean_square: Tensor
    vectors: int
    tokens: Tensor
    gram: tuple[Tensor, ...] | None = None
    gram_rows: int = 0
    gram_sum: Tensor | None = None

    @property
    def absmax(self) -> Tensor:
        """(C,), the greatest magnitude of each channel."""
        return torch.maximum(self.high, -self.low)


class Observer:
    """Gathers `LayerStatistics` of one layer from its inputs.

    `block`: the widest diagonal block of the Gram matrix, 0 for none; `gram_rows`: the most rows of a call that
    enter it, None for all; `tokens`: rows of the sample, which is kept as `dtype`; `seed` and `name` determine
    what is drawn.
    """

    def __init__(
        self,
        name: str,
        layer: nn.Linear | nn.Conv2d,
        *,
        block: int = 0,
        gram_rows: int | None = None,
        tokens: int = 0,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.layer = layer
        self.vectors = 0
        self._range: tuple[Tensor, Tensor] | None = None
        self._squares: Tensor | None = None
        self._gram: list[Tensor] = []
        self._gram_sum: Tensor | None = None
        self._widths = block_widths(layer, block) if block else []
        self._gram_limit, self._gram_rows = gram_rows, 0
        self._sample: Tensor | None = None
        self._keys = torch.empty(0, dtype=torch.float64)
        self._tokens, self._dtype = tokens, dtype
        # A stream per layer, so that a layer's sample does not depend on which others are observed.
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def update(self, inputs: Tensor) -> None:
        """Take in the inputs of one call. Raises BuildError if they are not finite."""
        if inputs.numel() == 0:
            return
        rows = layer_rows(self.layer, inputs.detach())
        self._count(rows.channels.float())
        # The least keys of all calls are an even sample without replacement; those of a call, one of the call.
        keys = torch.rand(rows.count, generator=self._generator, dtype=torch.float64)
        order = keys.argsort(stable=True)
        if self._widths:
            self._add(rows, order[: self._gram_limit].to(inputs.device))
        if self._tokens:
            self._merge(rows, keys, order[: self._tokens])

    def statistics(self) -> LayerStatistics:
        """What was gathered; at least one call must have been."""
        assert self._range is not None and self._squares is not None
        low, high = self._range
        columns = sum(block_widths(self.layer, CHUNK))
        return LayerStatistics(
            low=low.cpu(),
            high=high.cpu(),
            mean_square=(self._squares / self.vectors).float().cpu(),
            vectors=self.vectors,
            tokens=torch.empty(0, columns) if self._sample is None else self._sample.cpu(),
            gram=tuple(block.cpu() for block in self._gram) or None,
            gram_rows=self._gram_rows,
            gram_sum=None if self._gram_sum is None else self._gram_sum.float().cpu(),
        )

    def _count(self, vectors: Tensor) -> None:
        low, high = vectors.aminmax(dim=0)
        if not bool((low.isfinite() & high.isfinite()).all()):
            raise BuildError(
                f"the inputs of {self.name} are not finite", hint="run the pipeline in float32 or bfloat16"
            )
        squares = vectors.square().sum(dim=0, dtype=_widest(vectors.device))
        if self._range is not None:
            low, high = torch.minimum(self._range[0], low), torch.maximum(self._range[1], high)
        self._range = low, high
        self._squares = squares if self._squares is None else self._squares + squares
        self.vectors += vectors.shape[0]

    def _add(self, rows: Rows, index: Tensor) -> None:
        for part in index.split(CHUNK):
            taken = rows.take(part)
            self._gram = self._gram or [taken.new_zeros(width, width) for width in self._widths]
            for block, columns in zip(self._gram, taken.split(self._widths, dim=1), strict=True):
                block.addmm_(columns.T, columns)
            total = taken.sum(dim=0, dtype=_widest(taken.device))
            self._gram_sum = total if self._gram_sum is None else self._gram_sum + total
        self._gram_rows += index.numel()

    def _merge(self, rows: Rows, keys: Tensor, order: Tensor) -> None:
        if self._keys.numel() == self._tokens:
            order = order[keys[order] < self._keys[-1]]
        if order.numel() == 0:
            return
        taken = rows.take(order.to(rows.channels.device)).to(self._dtype)
        merged = torch.cat([self._keys, keys[order]])
        sample = taken if self._sample is None else torch.cat([self._sample, taken])
        least = merged.argsort(stable=True)[: self._tokens]
        self._keys, self._sample = merged[least], sample[least.to(sample.device)]


def _widest(device: torch.device) -> torch.dtype:
    """What sums are kept in; GPUs of Apple, and some of Intel, have no float64."""
    return torch.float32 if device.type in ("mps", "xpu") else torch.float64


def block_widths(layer: nn.Linear | nn.Conv2d, block: int) -> list[int]:
    """Widths of the diagonal blocks of a layer's Gram matrix: as few as `block` allows, equal to within one."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    columns = int(layer.weight[0].numel())
    pieces = -(-columns // block)
    return [columns // pieces + (piece < columns % pieces) for piece in range(pieces)] * groups
