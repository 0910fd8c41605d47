"""A component's weights as its recipe says: palettes and grids, rounded by GPTQ where it was calibrated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

from sdhub.core.progress import SILENT, Progress
from sdhub.core.units import GIB
from sdhub.recipes.recipe import Affine, ComponentRecipe, Palette, Treatment

if TYPE_CHECKING:
    import torch

    from sdhub.compression import affine, palettize
    from sdhub.compression.calibration import LayerStatistics

    Codebook: TypeAlias = palettize.Palette | affine.Grid

LEAST = 2**14  # weights; smaller layers, the first and last convolutions, save nothing and cost most
MEMORY = 2 * GIB  # of the layers that are worked on at once
PASS_WIDTH, PASSES = 2304, 2  # of coordinate descent, where inputs are few enough for it to be cheap


def treatments(weights: Mapping[str, torch.Tensor], component: ComponentRecipe) -> dict[str, Treatment]:
    """What is done to each weight that is changed: those the recipe names, and by default all matrices with enough
    weights to gain."""
    chosen = {
        name: component.layers.get(name, component.default)
        for name, weight in weights.items()
        if name in component.layers or (weight.ndim > 1 and weight.numel() >= LEAST)
    }
    return {name: each for name, each in chosen.items() if isinstance(each, (Palette, Affine))}


def compress(
    weights: Mapping[str, torch.Tensor],
    component: ComponentRecipe,
    statistics: Mapping[str, LayerStatistics] | None = None,
    *,
    memory: int = MEMORY,
    device: torch.device | None = None,
    progress: Progress = SILENT,
) -> Iterator[tuple[str, Codebook]]:
    """Layer after layer, in the order of `weights` (output channels first), its palette or grid.

    Tables are float16, as all formats that hold palettes store them. "gptq" layers without a Gram matrix
    in `statistics` are rounded to the nearest. A weight is not looked at again after its codes were given, so that
    it may be dropped. Several layers are worked on at once, within `memory` bytes (see
    `sdhub.compression.layers.each_layer`); with a `device` one after another there, and what is found comes back
    to the CPU. Raises UsageError, naming the layer, for weights that are not finite.
    """
    from dataclasses import replace

    from torch import Tensor

    from sdhub.compression.layers import each_layer

    chosen = treatments(weights, component)
    grams = {name: each.gram for name, each in (statistics or {}).items() if each.gram is not None}

    def work(name: str) -> Codebook:
        weight = weights[name] if device is None else weights[name].to(device)
        found = codes_of(weight, chosen[name], grams.get(name))
        return replace(found, **{key: each.cpu() for key, each in vars(found).items() if isinstance(each, Tensor)})

    def cost(name: str) -> int:
        widest = max((int(block.numel()) for block in grams.get(name, ())), default=0)
        return 4 * (4 * int(weights[name].numel()) + 3 * widest)

    millions = {name: weights[name].numel() / 1e6 for name in chosen}
    with progress.task("compressing weights", total=sum(millions.values()), unit="M weights") as task:
        for name, found in each_layer(chosen, work, cost=cost, memory=memory, workers=workers_on(device)):
            yield name, found
            task.advance(millions[name])


def workers_on(device: torch.device | None) -> int | None:
    """How many layers `each_layer` works on at once: a GPU takes one after another."""
    return None if device is None or device.type == "cpu" else 1


def codes_of(weight: torch.Tensor, treatment: Treatment, gram: tuple[torch.Tensor, ...] | None) -> Codebook:
    import torch

    from sdhub.compression.affine import quantize
    from sdhub.compression.gptq import gptq
    from sdhub.compression.palettize import palettize

    if isinstance(treatment, Palette):
        palette = palettize(
            weight.half(), treatment.bits, group_size=treatment.group_size or None, lut_dtype=torch.float16
        )
        if treatment.rounding == "round_to_nearest" or gram is None:
            return palette
        return gptq(weight, palette, gram, passes=_passes(weight))
    assert isinstance(treatment, Affine)
    grid = quantize(weight, treatment.bits, symmetric=treatment.symmetric, group_size=treatment.group_size or None)
    if treatment.rounding == "round_to_nearest" or gram is None:
        return grid
    return gptq(weight, grid, gram, passes=_passes(weight))


def _passes(weight: torch.Tensor) -> int:
    return PASSES if weight[0].numel() <= PASS_WIDTH else 0
