"""The nearest points of a palette or grid, one column of a weight at a time, for compensated rounding."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sdhub.compression.affine import Grid, code_range
from sdhub.compression.formats import Levels, nearest_levels
from sdhub.compression.palettize import Palette


class Picker(Protocol):
    """Rounds columns of N weights. `codes`: how many codes a column has (N, or N / d), of type `dtype`."""

    codes: int
    dtype: torch.dtype

    def nearest(self, column: int, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (`codes`,) and the values (N,) they stand for, nearest to `wanted` (N,) in `column` of K."""
        ...

    def rows(self, codes: Tensor) -> Tensor:
        """Codes of the whole weight as (`codes`, K)."""
        ...

    def bundled(self, energy: Tensor) -> Tensor:
        """Sums (`codes`,) of `energy` (N,) over the weights that a code stands for."""
        ...


def picker(codebook: Palette | Grid | Levels, columns: int) -> Picker:
    """The picker of `codebook` for a weight of `columns` flattened inputs."""
    if isinstance(codebook, Palette):
        return _Vectors(codebook) if codebook.cluster_dim > 1 else _Scalars(codebook)
    return _Grid(codebook, columns) if isinstance(codebook, Grid) else _Levels(codebook)


class _Rows:
    """One code per weight."""

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes.shape[0]
        self.dtype = codes.dtype

    def rows(self, codes: Tensor) -> Tensor:
        return codes.flatten(1)

    def bundled(self, energy: Tensor) -> Tensor:
        return energy


class _Scalars(_Rows):
    def __init__(self, palette: Palette) -> None:
        super().__init__(palette.indices)
        self.table = palette.table[..., 0].contiguous()
        self.middle = ((self.table[:, 1:] + self.table[:, :-1]) / 2).contiguous()
        self.size = palette.group_size
        self.padding = len(self.table) * self.size - self.codes

    def nearest(self, column: int, wanted: Tensor) -> tuple[Tensor, Tensor]:
        grouped = torch.nn.functional.pad(wanted, (0, self.padding)).view(-1, self.size)
        if len(self.table) == 1:
            index = torch.bucketize(grouped, self.middle[0])
        else:
            index = torch.searchsorted(self.middle, grouped)
        value = self.table.gather(1, index).view(-1)[: self.codes]
        return index.view(-1)[: self.codes].to(torch.uint8), value


class _Vectors:
    def __init__(self, palette: Palette) -> None:
        self.codes = palette.indices.shape[0]
        self.dtype = palette.indices.dtype
        self.table = palette.table
        self.dim = palette.cluster_dim
        self.size = palette.group_size // self.dim
        self.padding = (len(self.table) * self.size - self.codes) * self.dim
        self.offset = self.table.square().sum(dim=2)[:, None] / 2

    def rows(self, codes: Tensor) -> Tensor:
        return codes.flatten(1)

    def bundled(self, energy: Tensor) -> Tensor:
        return energy.view(-1, self.dim).sum(dim=1)

    def nearest(self, column: int, wanted: Tensor) -> tuple[Tensor, Tensor]:
        grouped = torch.nn.functional.pad(wanted, (0, self.padding)).view(len(self.table), self.size, self.dim)
        index = (self.offset - grouped @ self.table.transpose(1, 2)).argmin(dim=2)
        value = self.table.gather(1, index[..., None].expand(-1, -1, self.dim))
        return index.view(-1)[: self.codes].to(torch.uint8), value.reshape(-1)[: self.codes * self.dim]


class _Grid(_Rows):
    def __init__(self, grid: Grid, columns: int) -> None:
        super().__init__(grid.codes)
        zero = torch.zeros_like(grid.scale) if grid.zero_point is None else grid.zero_point
        # Columns first, so that a group's scales lie together.
        self.scale, self.zero = grid.scale.T.contiguous(), zero.T.contiguous()
        self.size = grid.group_size
        self.span = code_range(grid.bits, grid.zero_point is None)

    def nearest(self, column: int, wanted: Tensor) -> tuple[Tensor, Tensor]:
        scale, zero = self.scale[column // self.size], self.zero[column // self.size]
        code = (wanted / scale + zero).round_().clamp_(*self.span)
        return code.to(self.dtype), (code - zero) * scale


class _Levels(_Rows):
    def __init__(self, grid: Levels) -> None:
        super().__init__(grid.codes)
        self.levels = grid.levels
        self.scale = grid.scale.T.contiguous()
        self.size = grid.group_size

    def nearest(self, column: int, wanted: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scale[column // self.size]
        code = nearest_levels(wanted / scale, self.levels)
        return code, self.levels[code.long()] * scale
