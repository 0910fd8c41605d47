"""A variant with SDNQ weights from a loaded pipeline, and the pipeline back from the variant's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.backends.components import Read, tied, write_component
from sdhub.backends.folder import open_pipeline, write_rest
from sdhub.backends.input_statistics import input_statistics
from sdhub.backends.sdnq.config import METHOD, format_in, quantization_config
from sdhub.backends.sdnq.formats import (
    CHANNELS,
    LEAST,
    Format,
    dequantize_layer,
    format_of,
    quantize_layer,
)
from sdhub.backends.streaming import copy_rest, stream
from sdhub.core.device import of_pipeline, solver
from sdhub.core.errors import BuildError, MissingExtraError, RecipeError
from sdhub.core.nearly import meant
from sdhub.core.placement import place, take_home
from sdhub.core.progress import Progress
from sdhub.recipes.recipe import ComponentRecipe, Float, Recipe

# transformers' T5 casts what it gives this layer to the type of its weight, unless that is int8.
T5_OUTPUT = ".DenseReluDense.wo"

if TYPE_CHECKING:
    import torch

    from sdhub.compression.calibration import LayerStatistics


def build(pipeline: Any, denoiser: str, recipe: Recipe, out: Path, progress: Progress) -> None:
    """Fill `out`. The pipeline's modules lose their weights. Raises BuildError, RecipeError, MissingExtraError."""
    dtypes = {name: _float_type(component, denoiser) for name, component in recipe.components.items()}
    chosen = {
        name: layers_of(getattr(pipeline, name), component, where=f"{recipe.name}: {name}")
        for name, component in recipe.components.items()
    }

    if not any(chosen.values()):
        raise BuildError(
            f"no layer is as large as {LEAST} weights of {CHANNELS} inputs",
            hint="so small a model gains nothing by SDNQ: make an OpenVINO or a Core ML variant",
        )

    def observed(name: str) -> Mapping[str, LayerStatistics]:
        wanted = [layer for layer, layout in chosen[name].items() if layout.gptq or layout.rank]
        return input_statistics(pipeline, name, wanted, recipe.calibration, progress=progress)

    def done(name: str, statistics: Mapping[str, LayerStatistics]) -> None:
        take_home(pipeline)
        module, solved = getattr(pipeline, name), solver(device)
        write(module, chosen[name], statistics, out / name, dtypes[name], progress, device=solved)

    # Writing takes a component's weights, and to calibrate one all before it are run.
    device = of_pipeline(pipeline)
    encoders = [name for name, layers in chosen.items() if layers and name != denoiser]
    if chosen.get(denoiser):
        done(denoiser, observed(denoiser))
        place(pipeline, device)
    statistics = {name: observed(name) for name in encoders}
    take_home(pipeline)
    for name in encoders:
        done(name, statistics.pop(name))
    write_rest(pipeline, out, dtypes)


def build_streamed(
    folder: Path, denoiser: str, recipe: Recipe, out: Path, progress: Progress, device: torch.device | None = None
) -> None:
    """`build` of a diffusers folder without a calibration, a layer in memory at a time, which is solved on
    `device`. Raises SourceError too."""
    done = []
    for name, component in recipe.components.items():
        module, read = stream(folder, name)
        layers = layers_of(module, component, where=f"{recipe.name}: {name}")
        if layers:
            write(module, layers, {}, out / name, _float_type(component, denoiser), progress, read, device)
            done.append(name)
    copy_rest(folder, out, _float_type(ComponentRecipe(default=Float()), denoiser), progress, done=done)


def layers_of(module: Any, component: ComponentRecipe, *, where: str = "") -> dict[str, Format]:
    """The layers that a recipe quantizes, by module path: those it names, and by default every linear layer and
    convolution that is large enough to gain.

    Raises RecipeError for a layer that is not there, or that its model's code would not run in that format.
    """
    import torch

    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
    known = {name: part for name, part in module.named_modules() if type(part) in kinds}
    unknown = sorted(set(component.layers) - set(known))
    if unknown:
        raise RecipeError(f"{where} has no layer {unknown[0]}", hint=meant(unknown[0], known))
    kept = tied(module)
    chosen = {}
    for name, part in known.items():
        shape = tuple(part.weight.shape)
        small = part.weight.numel() < LEAST or shape[1] < CHANNELS
        if name not in component.layers and (small or f"{name}.weight" in kept):
            continue
        layout = format_of(component.layers.get(name, component.default))
        if layout is not None and name.endswith(T5_OUTPUT) and layout.dtype != "int8":
            if name in component.layers:
                raise RecipeError(f"{where}: {name} has to be of symmetric 8 bits", hint="or kept in 16")
            continue
        if layout is not None:
            chosen[name] = layout.fitting(shape)
    return chosen


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
    """Write a component's folder; returns the error of every layer. `read`, `device`: see `write_component`."""
    import torch

    floats = [
        name
        for name, part in module.named_modules()
        if isinstance(part, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)) and name not in layers
    ]
    convolutions = any(module.get_submodule(name).weight.ndim > 2 for name in layers)

    def encode(name: str, layer: torch.nn.Module) -> tuple[dict[str, torch.Tensor], float]:
        observed = statistics.get(name)
        return quantize_layer(layer.weight, layers[name], None if observed is None else observed.gram)

    return write_component(
        module,
        list(layers),
        encode,
        folder,
        quantization=quantization_config(layers, floats, convolutions=convolutions),
        replaced=("weight",),
        dtype=dtype,
        statistics=statistics,
        progress=progress,
        read=read,
        device=device,
    )


def open_variant(folder: Path) -> Any:
    """The variant as a float32 pipeline, its weights unpacked by sdhub. Raises BuildError."""
    return open_pipeline(folder, METHOD, _decode)


def _decode(
    module: Any, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    state = dict(tensors)
    names = [name.removesuffix(".scale") for name in tensors if name.endswith(".scale")]
    for name in names:
        parts = {
            key: state.pop(f"{name}.{key}")
            for key in ("weight", "scale", "zero_point", "svd_up", "svd_down")
            if f"{name}.{key}" in state
        }
        shape = tuple(module.get_submodule(name).weight.shape)
        state[f"{name}.weight"] = dequantize_layer(parts, format_in(config, name), shape)
    return state


def _float_type(component: ComponentRecipe, denoiser: str) -> torch.dtype:
    """The type of a component's float weights: of a UNet's pipeline its recipe's, by default float16, which
    transformers and T5 leave the range of."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("svdquant", error.name or "torch") from None
    if denoiser != "unet":
        return torch.bfloat16
    said = component.default.dtype if isinstance(component.default, Float) else "float16"
    return torch.bfloat16 if said == "bfloat16" else torch.float16
