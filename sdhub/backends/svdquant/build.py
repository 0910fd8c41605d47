"""A variant for Nunchaku's kernels from a loaded pipeline, and the pipeline back from the variant's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.backends.components import Read, write_component
from sdhub.backends.folder import open_pipeline, write_rest
from sdhub.backends.seen import seen_inputs
from sdhub.backends.svdquant.lite import METHOD, W4A4, Format, decode, encode, quantization_config
from sdhub.backends.svdquant.targets import layers_of
from sdhub.errors import BuildError, MissingExtraError
from sdhub.progress import Progress
from sdhub.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from sdhub.compression.calibration import LayerStatistics

TOKENS = 512  # of each layer, on which smoothing and rounding of inputs are judged
REPLACED = ("weight", "bias")


def build(pipeline: Any, denoiser: str, recipe: Recipe, out: Path, progress: Progress) -> None:
    """Fill `out`. The pipeline's modules lose their weights. Raises BuildError, RecipeError, MissingExtraError."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("svdquant", error.name or "torch") from None

    module = getattr(pipeline, denoiser)
    dtype = compute_type(denoiser)
    layers = layers_of(module, recipe.components[denoiser], where=f"{recipe.name}: {denoiser}")
    if not layers:
        raise BuildError(f"{denoiser} has no layer that the kernels take", hint="make an SDNQ variant")
    wanted = [name for name, layout in layers.items() if layout.kind == W4A4]
    statistics = seen_inputs(pipeline, denoiser, wanted, recipe.calibration, tokens=TOKENS, progress=progress)
    write(module, layers, statistics, out / denoiser, dtype, progress)
    write_rest(pipeline, out, dict.fromkeys(recipe.components, torch.float16))


def write(
    module: Any,
    layers: Mapping[str, Format],
    statistics: Mapping[str, LayerStatistics],
    folder: Path,
    dtype: torch.dtype,
    progress: Progress,
    read: Read | None = None,
) -> dict[str, float]:
    """Write the denoiser's folder; returns the error of every layer. `read`: see `write_component`."""
    return write_component(
        module,
        list(layers),
        lambda name, layer: encode(layer, layers[name], statistics.get(name), dtype),
        folder,
        quantization=quantization_config(layers, dtype),
        replaced=REPLACED,
        dtype=dtype,
        statistics=statistics,
        progress=progress,
        read=read,
    )


def compute_type(denoiser: str) -> torch.dtype:
    """What the layers' 16 bits are: UNets stay in float16's range, transformers may not."""
    import torch

    return torch.float16 if denoiser == "unet" else torch.bfloat16


def open_variant(folder: Path) -> Any:
    """The variant as a float32 pipeline whose layers compute what the kernels do. Raises BuildError."""
    return open_pipeline(folder, METHOD, decode)
