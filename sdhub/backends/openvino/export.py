"""From a diffusers pipeline to optimum-intel's folder, calibrate, convert, release, compress, part by part."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.backends.openvino import frequencies, graph, shapes
from sdhub.backends.openvino.calls import GRAM_BYTES, JUDGED, LARGE_JUDGED, LARGE_SIDE, SIDE, record
from sdhub.backends.openvino.graph import MODEL
from sdhub.backends.openvino.quantize import compress, smoothing_of
from sdhub.backends.openvino.sensitivity import Cost, most_sensitive, sensitivities
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.vocabulary import write_bpe_files
from sdhub.core.device import solver
from sdhub.core.errors import BuildError, MissingExtraError, RecipeError
from sdhub.core.nearly import meant
from sdhub.core.placement import take_home, visiting
from sdhub.core.progress import Progress
from sdhub.core.quiet import quiet
from sdhub.core.scratch import temporary
from sdhub.recipes.calibration import LARGE
from sdhub.recipes.recipe import Affine, Calibration, ComponentRecipe, Recipe

if TYPE_CHECKING:
    import torch

    from sdhub.compression.calibration import LayerStatistics


@dataclass(frozen=True)
class Known:
    """What calibration found out about the denoiser; `costs` are of layers that may stay in higher precision;
    layers are solved on `device`, None: the CPU."""

    statistics: Mapping[str, LayerStatistics] = field(default_factory=dict)
    costs: Mapping[str, Cost] = field(default_factory=dict)
    device: torch.device | None = None


def export(checkpoint: Checkpoint, pipeline: Any, recipe: Recipe, out: Path, progress: Progress) -> None:
    """Build the variant in the empty folder `out`. Raises BuildError, RecipeError."""
    known = prepare(checkpoint, pipeline, recipe, progress)
    for part in convert(checkpoint, pipeline, recipe, out, progress):
        compress_part(checkpoint, recipe, out / part, known, progress)


def prepare(checkpoint: Checkpoint, pipeline: Any, recipe: Recipe, progress: Progress) -> Known:
    """Make the pipeline what will be converted, and calibrate it."""
    with quiet():
        try:
            import nncf  # noqa: F401
            import optimum.exporters.openvino  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("openvino", error.name or "optimum-intel") from None
    vet_layers(pipeline, recipe)
    # A safety_checker/ folder breaks loading from the Hub: optimum-intel leaves safetensors files out.
    if "safety_checker" in pipeline.components:
        pipeline.register_modules(safety_checker=None)
        pipeline.register_to_config(requires_safety_checker=False)
    _say_one_width(pipeline)
    denoiser = recipe.components[checkpoint.family.denoiser]
    if recipe.sizes:
        latent = shapes.set_size(pipeline, recipe.sizes[0])
        if denoiser.token_merging:
            shapes.merge_tokens(pipeline.unet, denoiser.token_merging, latent)
    module = getattr(pipeline, checkpoint.family.denoiser)
    return _calibrated(module, pipeline, recipe.calibration, denoiser, progress)


def convert(checkpoint: Checkpoint, pipeline: Any, recipe: Recipe, out: Path, progress: Progress) -> list[str]:
    """Write the folder that optimum-intel would, weights in 16 bits; the names of its parts.

    Modules are let go of one by one; the denoiser comes last, when nothing else is left in memory.
    """
    from optimum.exporters.openvino.convert import get_diffusion_models_for_export_ext

    try:
        with quiet():
            models = get_diffusion_models_for_export_ext(pipeline, exporter="openvino")[1]
            _save_rest(pipeline, models, out)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BuildError(f"optimum-intel could not export {checkpoint.id}: {_one_line(error)}") from error
    parts = sorted(models, key=lambda name: (name == checkpoint.family.denoiser, name))
    if recipe.components[checkpoint.family.denoiser].token_merging:
        _trace_whole(models[checkpoint.family.denoiser][1])
    _release(pipeline)
    with progress.task("converting", total=len(parts), unit="parts") as task:
        for part in parts:
            _convert(checkpoint, part, models.pop(part), out)
            gc.collect()
            if recipe.sizes:
                shapes.fix(out / part, _extent(checkpoint, pipeline, recipe))
            task.advance()
    if recipe.sizes:
        shapes.keep_fixed(out)
    _write_config(out, recipe, parts)
    _settle_names(out, checkpoint.id)
    for tokenizer in sorted(out.glob("tokenizer*")):
        write_bpe_files(tokenizer)
    return parts


def _extent(checkpoint: Checkpoint, pipeline: Any, recipe: Recipe) -> shapes.Extent:
    tokenizer = getattr(pipeline, "tokenizer", None) or pipeline.tokenizer_2
    return shapes.Extent(
        size=recipe.sizes[0],
        scale=pipeline.vae_scale_factor,
        batch=recipe.batch,
        passes=1 if checkpoint.traits & shapes.UNGUIDED else 2,
        tokens=tokenizer.model_max_length,
    )


def plain_denoiser(checkpoint: Checkpoint, pipeline: Any, folder: Path, out: Path) -> bool:
    """Fill `out` with the variant in `folder`, copied, and the pipeline's denoiser in 16 bits, of any size.

    False where the variant's own denoiser is just that: then nothing is made.
    """
    from optimum.exporters.openvino.convert import get_diffusion_models_for_export_ext

    denoiser = checkpoint.family.denoiser
    document = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if set(graph.weight_types(graph.read(folder / denoiser))) == {"f16"} and document.get("dynamic_shapes", True):
        return False
    _say_one_width(pipeline)
    with quiet():
        models = get_diffusion_models_for_export_ext(pipeline, exporter="openvino")[1]
    for path in folder.iterdir():
        if path.name not in (denoiser, "model_index.json"):
            copied = shutil.copytree if path.is_dir() else shutil.copyfile
            copied(path, out / path.name)
    document.pop("dynamic_shapes", None)
    (out / "model_index.json").write_text(json.dumps(document), encoding="utf-8")
    getattr(pipeline, denoiser).save_config(out / denoiser)
    _convert(checkpoint, denoiser, models[denoiser], out)
    return True


def _keep_times(folder: Path) -> None:
    """Let a converted denoiser be told the time exactly: fractions of timesteps, waves unrounded."""
    with quiet():
        model = graph.read(folder)
        if graph.take_fractions(model, "timestep") + frequencies.restore(model):
            graph.save(model, folder)


def compress_part(checkpoint: Checkpoint, recipe: Recipe, folder: Path, known: Known, progress: Progress) -> None:
    """Compress one converted part in place."""
    component = _component(recipe, folder.name)
    if folder.name != checkpoint.family.denoiser:
        compress(folder, component, progress=progress)
        return
    if lost := sorted(set(component.layers) - set(graph.layers(graph.read(folder)))):
        raise BuildError(f"{checkpoint.id}: {folder.name} was converted without the recipe's layer {lost[0]}")
    compress(
        folder,
        component,
        higher_precision=layers_in_higher_precision(component, known.costs),
        statistics=known.statistics,
        device=known.device,
        progress=progress,
    )


def layers_in_higher_precision(component: ComponentRecipe, costs: Mapping[str, Cost]) -> frozenset[str]:
    """The layers that a component's default keeps in higher precision."""
    treatment = component.default
    if not isinstance(treatment, Affine) or not treatment.higher_precision:
        return frozenset()
    rounds = treatment.activations != "float"
    return most_sensitive(
        costs, treatment.higher_precision, by=lambda cost: cost.multiplications if rounds else cost.weights
    )


def _calibrated(
    module: Any, pipeline: Any, calibration: Calibration | None, component: ComponentRecipe, progress: Progress
) -> Known:
    """Run the denoiser as the calibration says, if there is one, where the pipeline is; then take that home."""
    if calibration is None:
        return Known(device=solver(take_home(pipeline)))
    from sdhub.compression.calibration import fitting_block

    treatments = {layer: component.layers.get(layer, component.default) for layer in _weighted(module)}
    affine = {layer: each for layer, each in treatments.items() if isinstance(each, Affine)}
    rounded = frozenset(layer for layer, each in affine.items() if each.activations != "float")
    gram = frozenset(layer for layer, each in affine.items() if each.rounding == "gptq")
    block = min(calibration.block, fitting_block(module, GRAM_BYTES, gram)) if gram else None
    with temporary() as place:
        calls, statistics = record(
            pipeline,
            module,
            calibration,
            place,
            layers=rounded | gram,
            gram=gram,
            block=block,
            progress=progress,
        )
        device = solver(take_home(pipeline))
        if not isinstance(component.default, Affine) or not component.default.higher_precision:
            return Known(statistics, device=device)
        judged = {
            layer: each
            for layer, each in affine.items()
            if layer not in component.layers and (layer in statistics or layer not in rounded)
        }
        large = sum(each.numel() for each in module.parameters()) > LARGE
        few, side = (LARGE_JUDGED, LARGE_SIDE) if large else (JUDGED, SIDE)
        with visiting(module, device):
            costs = sensitivities(
                module, calls.some(few), judged, statistics, side=side, seed=calibration.seed, progress=progress
            )
    return Known(statistics, costs, device)


def _say_one_width(pipeline: Any) -> None:
    """Where a UNet's config has the width of the text's states for every stage: optimum-intel reads no list."""
    unet = getattr(pipeline, "unet", None)
    widths = unet.config.cross_attention_dim if unet is not None else 0
    if unet is not None and not isinstance(widths, int) and len(set(widths)) == 1:
        unet.register_to_config(cross_attention_dim=widths[0])


def vet_layers(pipeline: Any, recipe: Recipe) -> None:
    """Raises RecipeError for a layer that the checkpoint does not have."""
    for name, component in recipe.components.items():
        for layer in component.layers:
            try:
                getattr(pipeline, name).get_submodule(layer)
            except AttributeError:
                known = [each for each, _ in getattr(pipeline, name).named_modules()]
                raise RecipeError(
                    f"{recipe.name}: {name} has no layer {layer}", hint=meant(layer, known)
                ) from None


def _weighted(module: Any) -> list[str]:
    import torch

    return [name for name, each in module.named_modules() if isinstance(each, (torch.nn.Linear, torch.nn.Conv2d))]


def _convert(checkpoint: Checkpoint, name: str, part: tuple[Any, Any], out: Path) -> None:
    """One part, a module and its export config, in 16 bits."""
    from optimum.exporters.openvino.convert import export_models
    from optimum.intel.openvino.configuration import OVConfig

    with quiet() as said:
        try:
            export_models(
                {name: part},
                out,
                output_names=[f"{name}/{MODEL}"],
                ov_config=OVConfig(dtype="fp16"),
                stateful=False,
                library_name="diffusers",
            )
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BuildError(
                f"optimum-intel could not export {name} of {checkpoint.id}: {_one_line(error)}",
                hint=_tail(said.getvalue()),
            ) from error
    if name == checkpoint.family.denoiser:
        _keep_times(out / name)


def _trace_whole(config: Any) -> None:
    """Have a denoiser traced at its own size: optimum-intel takes one pixel less, which merging cannot."""
    known = config._normalized_config.config
    side = known.sample_size
    larger = side + 1 if isinstance(side, int) else [each + 1 for each in side]
    config._normalized_config.config = type(known)({**known, "sample_size": larger})


def _save_rest(pipeline: Any, models: Mapping[str, Any], out: Path) -> None:
    """Everything that is no graph, as `optimum.exporters.openvino.export_from_model` saves it."""
    for name, (model, _) in models.items():
        if hasattr(model, "save_config"):
            model.save_config(out / name)
        else:
            model.config.save_pretrained(out / name)
    for name in ("scheduler", "feature_extractor", "tokenizer", "tokenizer_2", "tokenizer_3"):
        part = getattr(pipeline, name, None)
        if part is not None:
            part.save_pretrained(out / name)
    pipeline.save_config(out)


def _release(pipeline: Any) -> None:
    """Let go of the modules; the parts to convert hold them now, one by one."""
    import torch

    for name, part in list(pipeline.components.items()):
        if isinstance(part, torch.nn.Module):
            setattr(pipeline, name, None)


def _component(recipe: Recipe, part: str) -> ComponentRecipe:
    return recipe.components["vae" if part.startswith("vae_") else part]


def _write_config(out: Path, recipe: Recipe, parts: list[str]) -> None:
    """`openvino_config.json` as optimum-intel writes it, every part with its precision."""
    from optimum.intel import OVPipelineQuantizationConfig
    from optimum.intel.openvino.configuration import OVConfig

    compressed = {
        part: _quantization(component)
        for part in sorted(parts)
        if isinstance((component := _component(recipe, part)).default, Affine)
    }
    if not compressed:
        config = OVConfig(dtype="fp16")
    else:
        config = OVConfig(quantization_config=OVPipelineQuantizationConfig(compressed))
    with quiet():
        config.save_pretrained(out)


def _quantization(component: ComponentRecipe) -> Any:
    """What optimum-intel calls the treatment of most of a component's layers."""
    from optimum.intel import OVMixedQuantizationConfig, OVQuantizationConfig, OVWeightQuantizationConfig

    treatment = component.default
    assert isinstance(treatment, Affine)
    if treatment.activations == "float":
        grouped: dict[str, Any] = {"group_size": treatment.group_size or -1} if treatment.bits < 8 else {}
        return OVWeightQuantizationConfig(bits=treatment.bits, sym=treatment.symmetric, **grouped)
    alpha = smoothing_of(component) or -1.0
    full = OVQuantizationConfig(bits=8, sym=False, smooth_quant_alpha=alpha)
    if treatment.activations == "int8" and not treatment.higher_precision:
        return full
    return OVMixedQuantizationConfig(OVWeightQuantizationConfig(bits=8, sym=treatment.symmetric), full)


def _settle_names(out: Path, identity: str) -> None:
    """Replace the local paths that libraries write into configs by the checkpoint's own id."""
    for path in sorted(out.rglob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and "_name_or_path" in document:
            document["_name_or_path"] = identity
            path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _tail(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return " ".join(lines[-1:])[:300]
