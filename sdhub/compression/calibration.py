"""Calibration: what the inputs of a denoiser's layers look like along real sampling trajectories.

One pass, bounded memory: per layer the range and the energy of every input channel, a sample of input rows, and,
where asked for, the Gram matrix (in diagonal blocks where it would be too wide). Same seed, same machine, same
number of threads: same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import torch
from torch import nn

from sdhub.compression.observers import LayerStatistics, Observer, block_widths
from sdhub.compression.trajectories import Drive, spread, trajectories
from sdhub.core.errors import UsageError

__all__ = ["LayerStatistics", "collect", "fitting_block", "spread", "trajectories"]

Layers: TypeAlias = "Collection[str] | Callable[[str, nn.Module], bool] | None"

BLOCKS = tuple(2**power for power in range(15, 5, -1))  # beyond the widest layer known, down to a group of weights


def collect(
    denoiser: nn.Module,
    drive: Drive,
    layers: Layers = None,
    *,
    gram: bool | Callable[[str, nn.Module], bool] = False,
    gram_rows: int | None = 1024,
    block: int = 4096,
    tokens: int = 256,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, LayerStatistics]:
    """Statistics of the inputs of `denoiser`'s layers while `drive` runs it, by module path.

    `layers`: names, a predicate, or None for every Linear and Conv2d. `drive` (see `trajectories`) calls the
    denoiser as often as it likes; it is given a switch that turns observation off and on (it begins on), and while
    that is off no hook is in place. `gram`: for which layers. Of the rows (tokens, patches) that a call brings,
    at most `gram_rows`, drawn at random, enter the Gram matrix; None takes all. `block`: the widest diagonal
    block, so a layer of K columns takes at most 4 · K · block bytes (see `fitting_block`). `tokens`: rows of the
    sample, kept as `dtype`.

    Layers that were never called are absent. Hooks are gone when this returns or raises. Raises UsageError for a
    layer that does not exist or is neither Linear nor Conv2d, BuildError for inputs that are not finite.
    """
    wanted = gram if callable(gram) else lambda *_: gram
    observers = [
        Observer(
            name,
            layer,
            block=block if wanted(name, layer) else 0,
            gram_rows=gram_rows,
            tokens=tokens,
            dtype=dtype,
            seed=seed,
        )
        for name, layer in _chosen(denoiser, layers).items()
    ]
    handles: list[Any] = []

    def observe(on: bool) -> None:
        while handles:
            handles.pop().remove()
        if on:
            handles.extend(_hook(observer) for observer in observers)

    try:
        observe(True)
        with torch.no_grad():
            drive(observe)
    finally:
        observe(False)
    return {observer.name: observer.statistics() for observer in observers if observer.vectors}


def fitting_block(denoiser: nn.Module, budget: int, layers: Layers = None) -> int:
    """The widest `block` (a power of two) with which the Gram matrices of `layers` take at most `budget` bytes.

    Raises UsageError if the narrowest does not fit.
    """
    chosen = _chosen(denoiser, layers).values()
    for block in BLOCKS:
        if sum(4 * width**2 for layer in chosen for width in block_widths(layer, block)) <= budget:
            return int(block)
    raise UsageError(f"Gram matrices of {len(chosen)} layers exceed {budget} bytes", hint="take fewer layers")


def _hook(observer: Observer) -> Any:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        observer.update(args[0] if args else kwargs["input"])

    return observer.layer.register_forward_pre_hook(before, with_kwargs=True)


def _chosen(denoiser: nn.Module, layers: Layers) -> dict[str, nn.Linear | nn.Conv2d]:
    known = {
        name: module for name, module in denoiser.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    if layers is None:
        return known
    if callable(layers):
        return {name: module for name, module in known.items() if layers(name, module)}
    unknown = sorted(set(layers) - set(known))
    if unknown:
        raise UsageError(f"{unknown[0]} is no Linear or Conv2d of {type(denoiser).__name__}")
    return {name: module for name, module in known.items() if name in layers}
