"""Which layers W4A4 kernels take, and how many weights those are: from modules, or from a config alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sdhub.backends.svdquant.lite import W4A4, Format, format_of
from sdhub.errors import RecipeError
from sdhub.recipes.recipe import Component

BLOCKS = ("transformer_blocks", "single_transformer_blocks")
FEED_FORWARD = 4  # times a block's width, twice that where it is gated


def layers_of(module: Any, component: Component, *, where: str = "") -> dict[str, Format]:
    """The layers that a recipe quantizes, by module path: those it names, and by default the linear layers of
    transformer blocks that the kernels take; modulations (of norms) are few rows and stay.

    Raises RecipeError for a layer that is not there, or that it names and the kernels do not take.
    """
    import torch

    known = {name: part for name, part in module.named_modules() if type(part) is torch.nn.Linear}
    unknown = sorted(set(component.layers) - set(known))
    if unknown:
        raise RecipeError(f"{where} has no linear layer {unknown[0]}")
    chosen = {}
    for name, part in known.items():
        named = name in component.layers
        layout = format_of(component.layers[name] if named else component.default)
        if layout is None or not (named or _usual(name)):
            continue
        if layout.takes(part.out_features, part.in_features):
            chosen[name] = layout
        elif named:
            size = f"{part.out_features} x {part.in_features}"
            raise RecipeError(f"{where}: {name} is {size}: the kernels take multiples of 128")
    return chosen


def unet_linears(config: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """(N, K) of every linear layer in the transformer blocks of a UNet2DConditionModel with this config.

    Raises KeyError, TypeError or ValueError for a config that is none.
    """
    widths = [int(width) for width in config["block_out_channels"]]
    kinds, layers = config["down_block_types"], _each(config["layers_per_block"], len(widths))
    depths = _each(config.get("transformer_layers_per_block", 1), len(widths))
    context = config["cross_attention_dim"]
    cross = _each(context, len(widths))
    for width, kind, count, depth, inputs in zip(widths, kinds, layers, depths, cross, strict=True):
        if "CrossAttn" in kind:
            yield from _block(width, inputs, count * depth)
    if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn":
        yield from _block(widths[-1], cross[-1], depths[-1])
    upwards = zip(
        widths[::-1], config["up_block_types"], layers[::-1], _up_depths(config, depths), cross[::-1], strict=True
    )
    for width, kind, count, depth, inputs in upwards:
        if "CrossAttn" in kind:
            yield from _block(width, inputs, (count + 1) * depth)


def share(config: Mapping[str, Any], parameters: int, layout: Format) -> tuple[float, int]:
    """Of a UNet's `parameters`, the share that the kernels take, and the bits that these take."""
    taken = [size for size in unet_linears(config) if layout.kind == W4A4 and layout.takes(*size)]
    weights = sum(outputs * inputs for outputs, inputs in taken)
    return weights / parameters if parameters else 0.0, sum(layout.bits(*size) for size in taken)


def _usual(name: str) -> bool:
    steps = name.split(".")
    return any(step in BLOCKS for step in steps) and not any(step.startswith("norm") for step in steps)


def _block(width: int, context: int, count: int) -> Iterator[tuple[int, int]]:
    """A transformer block's layers, `count` times: two attentions, and a gated feed-forward layer."""
    for _ in range(count):
        yield from [(width, width)] * 6
        yield from [(width, context)] * 2
        yield from [(2 * FEED_FORWARD * width, width), (width, FEED_FORWARD * width)]


def _each(value: Any, count: int) -> list[int]:
    return [int(each) for each in value] if isinstance(value, (list, tuple)) else [int(value)] * count


def _up_depths(config: Mapping[str, Any], depths: list[int]) -> list[int]:
    reverse = config.get("reverse_transformer_layers_per_block")
    return depths[::-1] if reverse is None else _each(reverse, len(depths))
