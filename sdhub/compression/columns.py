"""The nearest points of a palette or grid, one column of a weight at a time, for GPTQ.

NumPy, on purpose: a column is a few thousand values, for which starting threads costs more than the work.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdhub.compression.affine import Grid, code_range
from sdhub.compression.formats import Levels
from sdhub.compression.palettize import Palette

Column = npt.NDArray[np.float32]
Codes = npt.NDArray[Any]


class Picker(Protocol):
    """Rounds columns of N weights. `codes`: how many codes a column has (N, or N / d), of type `dtype`."""

    codes: int
    dtype: torch.dtype

    def nearest(self, column: int, wanted: Column) -> tuple[Codes, Column]:
        """Codes (`codes`,) and the values (N,) they stand for, nearest to `wanted` (N,) in `column` of K."""
        ...

    def bundled(self, energy: Tensor) -> Tensor:
        """Sums (`codes`,) of `energy` (N,) over the weights that a code stands for."""
        ...


def picker(codebook: Palette | Grid | Levels) -> Picker:
    """The picker of `codebook`."""
    if isinstance(codebook, Palette):
        if codebook.cluster_dim > 1:
            return _Vectors(codebook)
        return _Table(codebook) if len(codebook.lut) == 1 else _Scalars(codebook)
    return _Grid(codebook) if isinstance(codebook, Grid) else _Levels(codebook)


class _Rows:
    """One code per weight."""

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes.shape[0]
        self.dtype = codes.dtype

    def bundled(self, energy: Tensor) -> Tensor:
        return energy


class _Table(_Rows):
    """One table for all rows."""

    def __init__(self, palette: Palette) -> None:
        super().__init__(palette.indices)
        self.values = palette.table[0, :, 0].cpu().numpy()
        self.middle = (self.values[1:] + self.values[:-1]) / 2

    def nearest(self, column: int, wanted: Column) -> tuple[Codes, Column]:
        index = self.middle.searchsorted(wanted)
        return index, self.values[index]


class _Scalars(_Rows):
    """One sorted array finds the entries of all tables: table g is lifted by g times more than any table spans."""

    def __init__(self, palette: Palette) -> None:
        super().__init__(palette.indices)
        table = palette.table[..., 0].cpu().double().numpy()
        group = np.arange(self.codes) // palette.group_size
        self.reach = 2 * float(np.abs(table).max()) + 1e-30
        lift = 4 * self.reach * np.arange(len(table))
        self.middle = ((table[:, 1:] + table[:, :-1]) / 2 + lift[:, None]).ravel()
        self.lift, self.below = lift[group], group * (table.shape[1] - 1)
        self.first, self.values = group * table.shape[1], table.astype(np.float32).ravel()

    def nearest(self, column: int, wanted: Column) -> tuple[Codes, Column]:
        place = np.minimum(np.maximum(wanted, -self.reach), self.reach) + self.lift
        index = self.middle.searchsorted(place) - self.below
        return index.astype(np.uint8), self.values[index + self.first]


class _Vectors:
    def __init__(self, palette: Palette) -> None:
        self.codes = palette.indices.shape[0]
        self.dtype = palette.indices.dtype
        self.dim, self.size = palette.cluster_dim, palette.group_size
        self.table = palette.table.cpu().numpy()
        self.offset = np.square(self.table).sum(axis=2) / 2

    def bundled(self, energy: Tensor) -> Tensor:
        return energy.view(-1, self.dim).sum(dim=1)

    def nearest(self, column: int, wanted: Column) -> tuple[Codes, Column]:
        codes, values = [], []
        for group, table in enumerate(self.table):
            vectors = wanted[group * self.size : (group + 1) * self.size].reshape(-1, self.dim)
            index = np.argmin(self.offset[group] - vectors @ table.T, axis=1)
            codes.append(index.astype(np.uint8))
            values.append(table[index].ravel())
        return np.concatenate(codes), np.concatenate(values)


class _Grid(_Rows):
    def __init__(self, grid: Grid) -> None:
        super().__init__(grid.codes)
        zero = torch.zeros_like(grid.scale) if grid.zero_point is None else grid.zero_point
        # Columns first, so that a group's scales lie together.
        self.scale, self.zero = (each.T.contiguous().cpu().numpy() for each in (grid.scale, zero))
        self.size = grid.group_size
        self.span = code_range(grid.bits, grid.zero_point is None)

    def nearest(self, column: int, wanted: Column) -> tuple[Codes, Column]:
        scale, zero = self.scale[column // self.size], self.zero[column // self.size]
        code = np.minimum(np.maximum(np.rint(wanted / scale + zero), self.span[0]), self.span[1])
        return code, (code - zero) * scale


class _Levels(_Rows):
    def __init__(self, grid: Levels) -> None:
        super().__init__(grid.codes)
        levels, order = grid.levels.cpu().sort(stable=True)
        self.levels, self.order = levels.numpy(), order.to(torch.uint8).numpy()
        self.middle = (self.levels[1:] + self.levels[:-1]) / 2
        self.scale = grid.scale.T.contiguous().cpu().numpy()
        self.size = grid.group_size

    def nearest(self, column: int, wanted: Column) -> tuple[Codes, Column]:
        scale = self.scale[column // self.size]
        index = self.middle.searchsorted(wanted / scale)
        return self.order[index], self.levels[index] * scale
