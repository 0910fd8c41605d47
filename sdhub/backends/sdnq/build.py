"""A variant with SDNQ weights from a loaded pipeline, and the pipeline back from the variant's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.backends.folder import open_pipeline, stem_of, write_config, write_rest
from sdhub.backends.parts import Parts
from sdhub.backends.sdnq.config import METHOD, format_in, quantization_config
from sdhub.backends.sdnq.formats import (
    CHANNELS,
    LEAST,
    Format,
    dequantize_layer,
    format_of,
    quantize_layer,
)
from sdhub.errors import MissingExtraError, RecipeError
from sdhub.progress import Progress
from sdhub.recipes.recipe import Component, Float, Recipe

if TYPE_CHECKING:
    import torch

    from sdhub.compression.calibration import LayerStatistics

MEMORY = 2 * 2**30  # of the layers that are worked on at once


def build(pipeline: Any, recipe: Recipe, out: Path, progress: Progress) -> None:
    """Fill `out`. The pipeline's modules lose their weights. Raises BuildError, RecipeError, MissingExtraError."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("svdquant", error.name or "torch") from None

    dtypes = {}
    for name, component in recipe.components.items():
        module = getattr(pipeline, name)
        layers = layers_of(module, component, where=f"{recipe.name}: {name}")
        dtypes[name] = getattr(torch, _float_type(component))
        if layers:
            statistics = _statistics(pipeline, name, layers, recipe, progress)
            write_component(module, layers, statistics, out / name, dtypes[name], progress)
    write_rest(pipeline, out, dtypes)


def layers_of(module: Any, component: Component, *, where: str = "") -> dict[str, Format]:
    """The layers that a recipe quantizes, by module path: those it names, and by default every linear layer and
    convolution that is large enough to gain. Raises RecipeError for a layer that is not there."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
    known = {name: part for name, part in module.named_modules() if type(part) in kinds}
    unknown = sorted(set(component.layers) - set(known))
    if unknown:
        raise RecipeError(f"{where} has no layer {unknown[0]}")
    kept = _tied(module)
    chosen = {}
    for name, part in known.items():
        shape = tuple(part.weight.shape)
        small = part.weight.numel() < LEAST or shape[1] < CHANNELS
        if name not in component.layers and (small or f"{name}.weight" in kept):
            continue
        layout = format_of(component.layers.get(name, component.default))
        if layout is not None:
            chosen[name] = layout.fitting(shape)
    return chosen


def write_component(
    module: Any,
    layers: Mapping[str, Format],
    statistics: Mapping[str, LayerStatistics],
    folder: Path,
    dtype: torch.dtype,
    progress: Progress,
) -> None:
    """Write a component's folder; other weights than those of `layers` are saved as `dtype`.

    Each layer's weight is given up once it is written.
    """
    import torch

    from sdhub.compression.layers import each_layer

    parts = Parts(folder / ".parts")
    floats = [
        name
        for name, part in module.named_modules()
        if isinstance(part, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)) and name not in layers
    ]
    convolutions = any(module.get_submodule(name).weight.ndim > 2 for name in layers)
    grams = {name: each.gram for name, each in statistics.items()}

    def work(name: str) -> tuple[dict[str, torch.Tensor], float]:
        return quantize_layer(module.get_submodule(name).weight, layers[name], grams.get(name))

    def cost(name: str) -> int:
        widest = max((int(block.numel()) for block in grams.get(name) or ()), default=0)
        return 4 * (8 * int(module.get_submodule(name).weight.numel()) + 3 * widest)

    waiting = [name for name in layers if not parts.has(name)]
    total = sum(module.get_submodule(name).weight.numel() for name in waiting) / 1e6
    with progress.task(f"quantizing {folder.name}", total=total, unit="M weights") as task:
        for name, (tensors, error) in each_layer(waiting, work, cost=cost, memory=MEMORY):
            layer = module.get_submodule(name)
            task.advance(layer.weight.numel() / 1e6)
            parts.put(name, {f"{name}.{key}": each for key, each in tensors.items()}, {"error": f"{error:.3e}"})
            layer.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    parts.put("", dict(_others(module, layers, dtype)))
    write_config(module, folder, quantization_config(layers, floats, convolutions=convolutions))
    parts.join(folder, stem_of(module), metadata={"format": "pt"})


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


def _others(module: Any, layers: Mapping[str, Format], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything that is no quantized weight; of tied weights the first."""
    seen: set[int] = set()
    for name, tensor in module.state_dict().items():
        if name.rpartition(".")[0] in layers and name.endswith(".weight"):
            continue
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        yield name, (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()


def _statistics(
    pipeline: Any, name: str, layers: Mapping[str, Format], recipe: Recipe, progress: Progress
) -> Mapping[str, LayerStatistics]:
    from sdhub.recipes.calibration import calibrate

    wanted = [layer for layer, layout in layers.items() if layout.compensated or layout.rank]
    if recipe.calibration is None or not wanted or name == "vae":
        return {}
    return calibrate(pipeline, recipe.calibration, name, wanted, progress=progress)


def _tied(module: Any) -> set[str]:
    """Weights that stand under two names."""
    counts: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        counts.setdefault(id(parameter), []).append(name)
    return {name for names in counts.values() if len(names) > 1 for name in names}


def _float_type(component: Component) -> str:
    """The type of a component's float weights: its recipe's, by default float16."""
    return component.default.dtype if isinstance(component.default, Float) else "float16"
