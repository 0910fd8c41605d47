"""Which layers Nunchaku's kernels take, and how many weights those are: from modules, or from a config alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sdhub.backends.svdquant.lite import W4A4, W4A16, Format, format_of
from sdhub.core.errors import RecipeError
from sdhub.core.nearly import meant
from sdhub.recipes.recipe import ComponentRecipe

BLOCKS = ("transformer_blocks", "single_transformer_blocks")
MOST = 1000  # blocks of a denoiser that is one
FEED_FORWARD = 4  # times a block's width, twice that where it is gated


def layers_of(module: Any, component: ComponentRecipe, *, where: str = "") -> dict[str, Format]:
    """The layers that a recipe quantizes, by module path: those it names, and by default the linear layers of
    transformer blocks that the kernels take; modulations (of norms) are few rows and stay.

    Raises RecipeError for a layer that is not there, or that it names and the kernels do not take.
    """
    import torch

    known = {name: part for name, part in module.named_modules() if type(part) is torch.nn.Linear}
    unknown = sorted(set(component.layers) - set(known))
    if unknown:
        raise RecipeError(f"{where} has no linear layer {unknown[0]}", hint=meant(unknown[0], known))
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
    depths = _depths(config.get("transformer_layers_per_block", 1), len(widths))
    context = config["cross_attention_dim"]
    cross = _each(context, len(widths))
    for width, kind, count, depth, inputs in zip(widths, kinds, layers, depths, cross, strict=True):
        if "CrossAttn" in kind:
            yield from _block(width, inputs, _deep(depth, count))
    if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn":
        yield from _block(widths[-1], cross[-1], _deep(depths[-1], 1))
    upwards = zip(
        widths[::-1], config["up_block_types"], layers[::-1], _up_depths(config, depths), cross[::-1], strict=True
    )
    for width, kind, count, depth, inputs in upwards:
        if "CrossAttn" in kind:
            yield from _block(width, inputs, _deep(depth, count + 1))


def flux_linears(config: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """(N, K) of every linear layer in the blocks of a FluxTransformer2DModel with this config, but for those that
    modulate. Raises KeyError, TypeError or ValueError for a config that is none."""
    width = _flux_width(config)
    wide = FEED_FORWARD * width
    for _ in range(_count(config["num_layers"])):
        yield from [(width, width)] * 8
        yield from [(wide, width), (width, wide)] * 2
    for _ in range(_count(config["num_single_layers"])):
        yield from [(width, width)] * 3
        yield from [(wide, width), (width, width + wide)]


def flux_modulations(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(N, K) of the layers that modulate the norms of a FluxTransformer2DModel's blocks, by name. Raises as
    `flux_linears`."""
    width = _flux_width(config)
    double = [
        f"transformer_blocks.{number}.{norm}.linear"
        for number in range(_count(config["num_layers"]))
        for norm in ("norm1", "norm1_context")
    ]
    single = [
        f"single_transformer_blocks.{number}.norm.linear" for number in range(_count(config["num_single_layers"]))
    ]
    return dict.fromkeys(double, (6 * width, width)) | dict.fromkeys(single, (3 * width, width))


def share(config: Mapping[str, Any], parameters: int, layout: Format) -> tuple[float, int]:
    """Of a denoiser's `parameters`, the share that the kernels take, and the bits that these take: FLUX's
    modulations as W4A16. Raises as `unet_linears`."""
    flux = "num_single_layers" in config
    found = [(size, layout) for size in (flux_linears if flux else unet_linears)(config) if layout.kind == W4A4]
    if flux:
        found += [(size, Format(W4A16)) for size in flux_modulations(config).values()]
    taken = [(size, each) for size, each in found if each.takes(*size)]
    weights = sum(outputs * inputs for (outputs, inputs), _ in taken)
    return weights / parameters if parameters else 0.0, sum(each.bits(*size) for size, each in taken)


def _count(value: Any) -> int:
    """A number of blocks. Raises ValueError for one that no model has."""
    if not 0 <= int(value) <= MOST:
        raise ValueError(f"{value} blocks")
    return int(value)


def _flux_width(config: Mapping[str, Any]) -> int:
    return int(config["num_attention_heads"]) * int(config["attention_head_dim"])


def _usual(name: str) -> bool:
    steps = name.split(".")
    return any(step in BLOCKS for step in steps) and not any(step.startswith("norm") for step in steps)


def _block(width: int, context: int, count: int) -> Iterator[tuple[int, int]]:
    """A transformer block's layers, `count` times: two attentions, and a gated feed-forward layer."""
    for _ in range(_count(count)):
        yield from [(width, width)] * 6
        yield from [(width, context)] * 2
        yield from [(2 * FEED_FORWARD * width, width), (width, FEED_FORWARD * width)]


def _each(value: Any, count: int) -> list[int]:
    return [int(each) for each in value] if isinstance(value, (list, tuple)) else [int(value)] * count


def _depths(value: Any, count: int) -> list[Any]:
    """Blocks in an attention of each stage, or in each attention of it (`[[0, 0], [2, 2], [4, 4]]`)."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * count


def _deep(depth: Any, count: int) -> int:
    """Blocks in the first `count` attentions of a stage together. Raises ValueError where there are fewer."""
    if not isinstance(depth, (list, tuple)):
        return count * int(depth)
    if len(depth) < count:
        raise ValueError(f"{len(depth)} depths of {count} attentions")
    return sum(int(each) for each in depth[:count])


def _up_depths(config: Mapping[str, Any], depths: list[Any]) -> list[Any]:
    """As diffusers builds them, which asks for the way up where the way down has a depth for each attention."""
    reverse = config.get("reverse_transformer_layers_per_block")
    return depths[::-1] if reverse is None else _depths(reverse, len(depths))
