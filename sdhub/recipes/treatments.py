"""Treatments as an analysis sees them: how large they are, and what they leave of a weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from sdhub.core.errors import UsageError
from sdhub.core.progress import SILENT, Progress
from sdhub.recipes.recipe import Affine, ComponentRecipe, Float, LowRank, Palette, Treatment
from sdhub.recipes.weights import codes_of, compress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdhub.compression.calibration import LayerStatistics

TILE = 128  # of the kernels that compute in 4 bits: layers are multiples of it in both directions
SCALAR = 16  # bits of a scale, a zero point's share aside, of a table's entry, and of a low-rank branch's number


def size_of(treatment: Treatment, shape: Sequence[int]) -> int:
    """Bits of a weight of this shape, tables and scales included. Raises UsageError where it does not fit."""
    rows, columns = shape[0], prod(shape[1:])
    if isinstance(treatment, Float):
        return rows * columns * (32 if treatment.dtype == "float32" else 16)
    if isinstance(treatment, Palette):
        tables = -(-rows // treatment.group_size) if treatment.group_size else 1
        return rows * columns * treatment.bits + tables * SCALAR * 2**treatment.bits
    if isinstance(treatment, Affine):
        zero = 0 if treatment.symmetric else treatment.bits
        return rows * columns * treatment.bits + _scales(rows, columns, treatment.group_size) * (SCALAR + zero)
    if treatment.activations != "float" and (len(shape) != 2 or rows % TILE or columns % TILE):
        raise UsageError(f"no kernel computes in 4 bits with a weight of {' x '.join(map(str, shape))}")
    if treatment.rank > min(rows, columns):
        raise UsageError(f"rank {treatment.rank} of a weight of {rows} x {columns}")
    bits = 8 if treatment.residual.endswith("8") else 4
    zero = bits if treatment.residual.startswith("uint") else 0
    scale = 8 if treatment.residual == "nvfp4" else SCALAR
    scales = _scales(rows, columns, 16 if treatment.residual == "nvfp4" else treatment.group_size)
    return rows * columns * bits + scales * (scale + zero) + treatment.rank * (rows + columns) * SCALAR


def residuals(treatments: Sequence[Treatment], weight: Tensor, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """What treatments, rounding to the nearest, add to the output channels `rows` of a weight (N, ...): by number
    (n, K). Those that do not fit are left out.

    Tables and branches are made for these channels alone, which is cheaper and about as good.
    """
    whole = weight.detach()
    part = whole[rows].float()
    tables = _tables(treatments, part)
    for number, treatment in enumerate(treatments):
        try:
            if isinstance(treatment, LowRank):
                found = _approximation(treatment, whole.float())[rows]
            else:
                found = tables[number] if number in tables else _approximation(treatment, part)
        except UsageError:
            continue
        yield number, (found.to(part.device) - part).flatten(1)


def _tables(treatments: Sequence[Treatment], part: Tensor) -> dict[int, Tensor]:
    """What palettes of one table for all channels leave, by number."""
    from sdhub.compression.palettize import sketch

    plain = {
        number: each.bits
        for number, each in enumerate(treatments)
        if isinstance(each, Palette) and not each.group_size
    }
    widths = sorted(set(plain.values()))
    if not widths:
        return {}
    found = dict(zip(widths, (each.dequantize() for each in sketch(part.half(), widths)), strict=True))
    return {number: found[bits] for number, bits in plain.items()}


def dequantized(
    weights: Mapping[str, Tensor],
    treatments: Mapping[str, Treatment],
    statistics: Mapping[str, LayerStatistics] | None = None,
    *,
    device: torch.device | None = None,
    progress: Progress = SILENT,
) -> Iterator[tuple[str, Tensor]]:
    """What the treatments leave of each weight (N, ...), float32; `statistics` and `device` as in
    `weights.compress`.

    Low-rank treatments are made plainly, without calibration, as `residual` reckons them.
    """
    coded: dict[str, Treatment] = {
        name: each for name, each in treatments.items() if isinstance(each, (Affine, Palette))
    }
    for name, treatment in treatments.items():
        if name not in coded:
            yield name, _approximation(treatment, weights[name].to(device or "cpu").float())
    component = ComponentRecipe(default=Float(), layers=coded)
    chosen = {name: weights[name] for name in coded}
    for name, found in compress(chosen, component, statistics, device=device, progress=progress):
        yield name, found.dequantize()


def _approximation(treatment: Treatment, weight: Tensor) -> Tensor:
    import torch

    if isinstance(treatment, Float):
        return weight.to(getattr(torch, treatment.dtype)).float()
    if isinstance(treatment, LowRank):
        return _low_rank(treatment, weight)
    return codes_of(weight, treatment.model_copy(update={"rounding": "round_to_nearest"}), None).dequantize()


def _low_rank(treatment: LowRank, weight: Tensor) -> Tensor:
    """The plain decomposition: the best branch, and the residual rounded."""
    from sdhub.compression.affine import quantize
    from sdhub.compression.formats import nvfp4
    from sdhub.compression.lowrank import nearest_branch

    flat = weight.flatten(1)
    branch = nearest_branch(flat, treatment.rank).dense() if treatment.rank else flat.new_zeros(flat.shape)
    residual = flat - branch
    if treatment.residual == "nvfp4":
        return (branch + nvfp4(residual).dequantize()).view(weight.shape)
    grid = quantize(
        residual,
        int(treatment.residual[-1]),
        symmetric=treatment.residual.startswith("int"),
        group_size=treatment.group_size or None,
    )
    return (branch + grid.dequantize()).view(weight.shape)


def _scales(rows: int, columns: int, group_size: int) -> int:
    if group_size and columns % group_size:
        raise UsageError(f"groups of {group_size} among {columns} inputs")
    return rows * (columns // group_size if group_size else 1)
