"""From a diffusers pipeline to the folder that is published: packages by attention, and what surrounds them.

model_index.json, scheduler/, tokenizer/, unet/config.json, …   as diffusers saves them
split_einsum/packages/*.mlpackage, vocab.json, merges.txt       Apple's layout; likewise `original/packages`
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.backends.coreml.convert import convert_component
from sdhub.backends.coreml.specs import (
    ComponentSpec,
    Shape,
    WrapOptions,
    controlnet,
    halves,
    is_tiny,
    package_name,
    scaling,
    specs_of,
    time_ids,
)
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.companions import LoadedCompanion
from sdhub.checkpoint.sampling import sampling_defaults
from sdhub.checkpoint.vocabulary import write_bpe_files
from sdhub.core.device import solver
from sdhub.core.errors import BuildError, RecipeError
from sdhub.core.nearly import meant
from sdhub.core.placement import take_home
from sdhub.core.progress import Progress
from sdhub.core.quiet import quiet
from sdhub.recipes.calibration import calibrate
from sdhub.recipes.recipe import ComponentRecipe, Recipe
from sdhub.recipes.weights import compress, treatments

if TYPE_CHECKING:
    import torch

    from sdhub.backends.coreml.constants import Codes

AUTHOR = "made with sdhub"
DENOISER = "unet"
CONTROLNET = "controlnet"


def build(
    checkpoint: Checkpoint,
    pipeline: Any,
    companions: Sequence[LoadedCompanion],
    recipe: Recipe,
    out: Path,
    progress: Progress,
) -> None:
    """Fill the empty folder `out`. The pipeline's weights are consumed. Raises BuildError, RecipeError."""
    scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    side = checkpoint.size or checkpoint.family.size
    sizes = [Shape(width, height, scale=scale) for width, height in recipe.sizes or ((side, side),)]
    models = _models(checkpoint, pipeline, companions, recipe, progress)
    if is_tiny(pipeline.vae):  # its packages take and give latents as the apps scale them
        pipeline.vae.register_to_config(scaling_factor=scaling(checkpoint.family.name))
    places: list[Path] = []
    for attention in recipe.attention:
        place = out / attention / "packages"
        place.mkdir(parents=True)
        metadata = _metadata(checkpoint, pipeline, recipe, attention)
        for model in models:
            spec = model.spec
            for number, shape in enumerate(sizes if spec.sized else sizes[:1]):
                path = place / package_name(model.identity, spec, shape if number else None)
                if places and not spec.attention:
                    shutil.copytree(places[0] / path.name, path)
                    continue
                convert_component(
                    spec,
                    model.module,
                    path,
                    shape=shape,
                    options=WrapOptions(attention, sampling_defaults(checkpoint).guidance),
                    codes=model.codes,
                    metadata=metadata if spec.attention else _without(metadata, "attention_implementation"),
                    chunked=recipe.chunked and spec.part == DENOISER,
                    progress=progress,
                )
        places.append(place)
    _surround(pipeline, out, places)


@dataclass(frozen=True)
class _Model:
    """What becomes a package, or one for each size: `identity` names it, `codes` are of its layers."""

    spec: ComponentSpec
    module: Any
    identity: str
    codes: Mapping[str, Codes]


def _models(
    checkpoint: Checkpoint,
    pipeline: Any,
    companions: Sequence[LoadedCompanion],
    recipe: Recipe,
    progress: Progress,
) -> list[_Model]:
    """The checkpoint's own components, then its companions; a UNet comes once more where there are ControlNets."""
    controlnets = [each for each in companions if each.companion.kind == CONTROLNET]
    modules = {name: part for name, part in pipeline.components.items() if hasattr(part, "parameters")}
    modules |= {each.companion.kind: each.module for each in companions if each.companion.kind != CONTROLNET}
    specs = specs_of(
        checkpoint.family.name, list(modules), controlled=bool(controlnets), half_vae=halves(pipeline.vae)
    )
    codes = _codes(pipeline, recipe, progress)
    found = [_Model(spec, modules[spec.part], checkpoint.id, codes.get(spec.part, {})) for spec in specs]
    for each in controlnets:
        module = each.module
        own = dict(_consumed(module, _weights(module), recipe.components[CONTROLNET], {}, progress))
        found.append(_Model(controlnet(time_ids(checkpoint.family.name)), module, each.companion.name, own))
    return found


def _codes(pipeline: Any, recipe: Recipe, progress: Progress) -> dict[str, dict[str, Codes]]:
    """Palettes and grids of every component, by layer. Calibration comes first: it needs the whole pipeline."""
    statistics = {
        name: _statistics(pipeline, name, component, recipe, progress)
        for name, component in recipe.components.items()
        if name != CONTROLNET
    }
    device, found = solver(take_home(pipeline)), {}
    for name in statistics:
        component = recipe.components[name]
        module = getattr(pipeline, name)
        weights = _weights(module)
        for layer in component.layers:
            if layer not in weights:
                raise RecipeError(
                    f"{recipe.name}: {name} has no layer {layer} with a weight", hint=meant(layer, weights)
                )
        found[name] = dict(_consumed(module, weights, component, statistics[name], progress, device))
        statistics[name] = {}
    return found


def _statistics(pipeline: Any, name: str, component: ComponentRecipe, recipe: Recipe, progress: Progress) -> Any:
    if recipe.calibration is None or name == "vae":
        return {}
    module = getattr(pipeline, name)
    wanted = [
        layer
        for layer, treatment in treatments(_weights(module), component).items()
        if getattr(treatment, "rounding", "") == "gptq" and _has_rows(module.get_submodule(layer))
    ]
    return calibrate(pipeline, recipe.calibration, name, wanted, progress=progress) if wanted else {}


def _weights(module: Any) -> dict[str, torch.Tensor]:
    """Weights of layers by module path: what a recipe can name. Shared ones stand under their first name."""
    return {
        name.removesuffix(".weight"): parameter.detach()
        for name, parameter in module.named_parameters()
        if name.endswith(".weight") and parameter.ndim > 1
    }


def _has_rows(layer: Any) -> bool:
    from torch import nn

    return isinstance(layer, (nn.Linear, nn.Conv2d))


def _consumed(
    module: Any,
    weights: dict[str, torch.Tensor],
    component: ComponentRecipe,
    statistics: Mapping[str, Any],
    progress: Progress,
    device: torch.device | None = None,
) -> Iterator[tuple[str, Codes]]:
    """Codes of a component, solved on `device`; a weight is dropped as soon as it has its codes: memory holds one
    of both."""
    from torch import nn

    for name, codes in compress(weights, component, statistics, device=device, progress=progress):
        weight = weights.pop(name)
        module.get_submodule(name).weight = nn.Parameter(weight.to("meta"), requires_grad=False)
        yield name, codes


def _metadata(checkpoint: Checkpoint, pipeline: Any, recipe: Recipe, attention: str) -> dict[str, str]:
    """What the packages say of themselves."""
    found = {
        "author": AUTHOR,
        "license": checkpoint.license.id if checkpoint.license else "",
        "version": checkpoint.sha or "",
        "attention_implementation": attention.upper(),
        "prediction_type": checkpoint.prediction_type,
        "scaling_factor": str(pipeline.vae.config.scaling_factor),
        "hidden_size": str(pipeline.unet.config.cross_attention_dim),
        "source": checkpoint.id,
        "revision": checkpoint.sha or "",
        "recipe": recipe.name,
        "recipe_sha256": recipe.sha256,
        "sdhub": version("sdhub"),
    }
    return {name: value for name, value in found.items() if value}


def _without(metadata: Mapping[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key != name}


def _surround(pipeline: Any, out: Path, places: list[Path]) -> None:
    """Configs, scheduler and tokenizers; the vocabulary that Apple's apps read stands with the packages."""
    try:
        with quiet():
            for name, part in pipeline.components.items():
                if hasattr(part, "save_config"):
                    part.save_config(out / name)
                elif hasattr(getattr(part, "config", None), "save_pretrained"):
                    part.config.save_pretrained(out / name)
                elif hasattr(part, "save_pretrained"):
                    part.save_pretrained(out / name)
            pipeline.save_config(out)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise BuildError(
            f"the pipeline's configs could not be saved: {' '.join(str(error).split())[:300]}"
        ) from error
    for tokenizer in sorted(out.glob("tokenizer*")):
        write_bpe_files(tokenizer)
    for place in places:
        for name in ("vocab.json", "merges.txt"):
            if (out / "tokenizer" / name).is_file():
                shutil.copyfile(out / "tokenizer" / name, place / name)
