"""Variants for Nunchaku's kernels from a loaded pipeline, and the pipeline back from a variant's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.backends.components import Read, write_component
from sdhub.backends.folder import assembled, filled, open_pipeline, tensors_of, write_rest
from sdhub.backends.input_statistics import input_statistics
from sdhub.backends.streaming import copy_rest, stream
from sdhub.backends.svdquant import single
from sdhub.backends.svdquant.arrangement import FLUX, arrangement_of
from sdhub.backends.svdquant.lite import METHOD, W4A4, Format, decode, encode, format_of, quantization_config
from sdhub.backends.svdquant.targets import layers_of
from sdhub.checkpoint.configs import keep_component
from sdhub.core.device import solver
from sdhub.core.documents import parse_object
from sdhub.core.errors import BuildError, MissingExtraError
from sdhub.core.placement import take_home
from sdhub.core.progress import Progress
from sdhub.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from sdhub.compression.calibration import LayerStatistics

TOKENS = 256  # of each layer, on which smoothing and rounding of inputs are judged
REPLACED = ("weight", "bias")


def build(pipeline: Any, denoiser: str, recipe: Recipe, out: Path, progress: Progress) -> None:
    """Fill `out`. The pipeline's modules lose their weights. Raises BuildError, RecipeError, MissingExtraError."""
    module = getattr(pipeline, denoiser)
    dtype = compute_type(denoiser)
    layers = layers_of(module, recipe.components[denoiser], where=f"{recipe.name}: {denoiser}")
    if not layers:
        raise BuildError(f"{denoiser} has no layer that the kernels take", hint="make an SDNQ variant")
    wanted = [name for name, layout in layers.items() if layout.kind == W4A4]
    statistics = input_statistics(pipeline, denoiser, wanted, recipe.calibration, tokens=TOKENS, progress=progress)
    device = solver(take_home(pipeline))
    write(module, layers, statistics, out / denoiser, dtype, progress, device=device)
    write_rest(pipeline, out, dict.fromkeys(recipe.components, dtype))


def build_streamed(
    folder: Path, denoiser: str, recipe: Recipe, out: Path, progress: Progress, device: torch.device | None = None
) -> None:
    """`build` of a diffusers folder without a calibration, a layer in memory at a time, which is solved on
    `device`. Raises SourceError too."""
    module, read = stream(folder, denoiser)
    dtype = compute_type(denoiser)
    layers = layers_of(module, recipe.components[denoiser], where=f"{recipe.name}: {denoiser}")
    if not layers:
        raise BuildError(f"{denoiser} has no layer that the kernels take", hint="make an SDNQ variant")
    write(module, layers, {}, out / denoiser, dtype, progress, read, device)
    copy_rest(folder, out, dtype, progress, done=(denoiser,))


def build_single_streamed(
    folder: Path,
    denoiser: str,
    model: str,
    recipe: Recipe,
    out: Path,
    progress: Progress,
    device: torch.device | None = None,
) -> None:
    """`build_single`, as `build_streamed`."""
    import torch

    module, read = stream(folder, denoiser)
    layout = format_of(recipe.components[denoiser].default)
    assert layout is not None
    path = out / single.file_name(layout, model)
    single.write(module, layout, {}, path, torch.bfloat16, progress, read, device)
    copy_rest(folder, out, compute_type(denoiser), progress, done=(denoiser,))


def build_single(pipeline: Any, denoiser: str, model: str, recipe: Recipe, out: Path, progress: Progress) -> None:
    """Fill `out` with Nunchaku's own file and the rest of the pipeline. Raises as `build`."""
    import torch

    module, layout = getattr(pipeline, denoiser), format_of(recipe.components[denoiser].default)
    assert layout is not None
    wanted = sorted({target.sources[0] for target in arrangement_of(module).targets if not target.modulations})
    observed = input_statistics(pipeline, denoiser, wanted, recipe.calibration, tokens=TOKENS, progress=progress)
    path = out / single.file_name(layout, model)
    device = solver(take_home(pipeline))
    single.write(module, layout, observed, path, torch.bfloat16, progress, device=device)
    rest = dict.fromkeys(recipe.components, compute_type(denoiser))
    write_rest(pipeline, out, rest, left_out=(denoiser,))


def write(
    module: Any,
    layers: Mapping[str, Format],
    statistics: Mapping[str, LayerStatistics],
    folder: Path,
    dtype: torch.dtype,
    progress: Progress,
    read: Read | None = None,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Write the denoiser's folder; returns the error of every layer. `read`, `device`: see `write_component`."""
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
        device=device,
    )


def compute_type(denoiser: str) -> torch.dtype:
    """What the layers' 16 bits are: UNets stay in float16's range, transformers may not."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("svdquant", error.name or "torch") from None
    return torch.float16 if denoiser == "unet" else torch.bfloat16


def open_variant(folder: Path) -> Any:
    """The variant as a float32 pipeline whose layers compute what the kernels do. Raises BuildError."""
    return open_pipeline(folder, METHOD, decode)


def open_single(folder: Path, path: Path, said: Mapping[str, str]) -> Any:
    """The same of a folder with Nunchaku's own file, whose metadata are `said`. Raises BuildError."""
    config = parse_object(said["config"].encode(), f"config of {path.name}")
    quantization = parse_object(said["quantization_config"].encode(), f"quantization_config of {path.name}")
    part = "transformer" if said["model_class"] == FLUX else "unet"

    def make(library: str, class_name: str) -> Any:
        def fill(module: Any) -> Mapping[str, torch.Tensor]:
            return single.decode(module, quantization, dict(tensors_of([path])))

        kept = keep_component(library, class_name, config, f"config of {path.name}").document
        return filled(path.name, library, class_name, dict(kept), fill)

    return assembled(folder, {part: make})
