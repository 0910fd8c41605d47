"""From a diffusers pipeline to optimum-intel's folder, component by component: convert, compress, release."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.backends.openvino import shapes
from sdhub.backends.openvino.calls import Calls, record
from sdhub.backends.openvino.graph import MODEL
from sdhub.backends.openvino.quantize import compress, smoothing_of
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.vocabulary import write_bpe_files
from sdhub.errors import BuildError, MissingExtraError, RecipeError
from sdhub.progress import Progress
from sdhub.quiet import quiet
from sdhub.recipes.recipe import Affine, Component, Recipe

if TYPE_CHECKING:
    from sdhub.compression.calibration import LayerStatistics

JUDGED = 24  # calls that sensitivity is measured on
GRAM_BYTES = 6 * 2**30  # of the Gram matrices of all layers together


@dataclass(frozen=True)
class Known:
    """What calibration found out about the denoiser."""

    calls: Calls | None = None
    statistics: Mapping[str, LayerStatistics] = field(default_factory=dict)
    spared: frozenset[str] = frozenset()


def export(checkpoint: Checkpoint, pipeline: Any, recipe: Recipe, out: Path, progress: Progress) -> None:
    """Build the variant in the empty folder `out`. Raises BuildError, RecipeError."""
    with quiet():
        try:
            import nncf  # noqa: F401
            import optimum.exporters.openvino  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("openvino", error.name or "optimum-intel") from None

    vet_layers(pipeline, recipe)
    # A safety_checker/ folder breaks loading from the Hub: optimum-intel leaves safetensors files out.
    pipeline.register_modules(safety_checker=None)
    pipeline.register_to_config(requires_safety_checker=False)
    denoiser = recipe.components[checkpoint.family.denoiser]
    latent = shapes.set_size(pipeline, recipe.sizes[0]) if recipe.sizes else None
    if denoiser.token_merging and latent:
        shapes.merge_tokens(pipeline.unet, denoiser.token_merging, latent)
    with tempfile.TemporaryDirectory(prefix="sdhub-") as place:
        known = calibrated(pipeline, recipe, denoiser, Path(place), progress)
        parts = _convert_all(checkpoint, pipeline, recipe, out, latent, known, progress)
    if latent:
        shapes.keep_fixed(out)
    _write_config(out, recipe, parts)
    _settle_names(out, checkpoint.id)
    for tokenizer in sorted(out.glob("tokenizer*")):
        write_bpe_files(tokenizer)


def calibrated(pipeline: Any, recipe: Recipe, denoiser: Component, place: Path, progress: Progress) -> Known:
    """Run the denoiser as the recipe's calibration says, if there is one; recorded calls go into `place`."""
    if recipe.calibration is None:
        return Known()
    from sdhub.backends.openvino.sensitivity import sensitivities, spare
    from sdhub.compression.calibration import fitting_block

    treatments = {layer: denoiser.layers.get(layer, denoiser.default) for layer in _weighted(pipeline.unet)}
    gram = frozenset(
        layer for layer, each in treatments.items() if isinstance(each, Affine) and each.rounding == "compensated"
    )
    block = min(recipe.calibration.block, fitting_block(pipeline.unet, GRAM_BYTES, gram)) if gram else None
    calls, statistics = record(pipeline, recipe.calibration, place, gram=gram, block=block, progress=progress)
    spared: frozenset[str] = frozenset()
    if isinstance(denoiser.default, Affine) and denoiser.default.spared:
        judged = {layer: each for layer, each in treatments.items() if layer not in denoiser.layers}
        costs = sensitivities(
            pipeline.unet, calls.some(JUDGED), judged, seed=recipe.calibration.seed, progress=progress
        )
        rounds = denoiser.default.activations != "float"
        spared = spare(
            costs,
            denoiser.default.spared,
            by=lambda cost: cost.multiplications if rounds else cost.weights,
        )
    return Known(calls, statistics, spared)


def vet_layers(pipeline: Any, recipe: Recipe) -> None:
    """Raises RecipeError for a layer that the checkpoint does not have."""
    for name, component in recipe.components.items():
        for layer in component.layers:
            try:
                getattr(pipeline, name).get_submodule(layer)
            except AttributeError:
                raise RecipeError(f"{recipe.name}: {name} has no layer {layer}") from None


def _weighted(module: Any) -> list[str]:
    import torch

    return [name for name, each in module.named_modules() if isinstance(each, (torch.nn.Linear, torch.nn.Conv2d))]


def _convert_all(
    checkpoint: Checkpoint,
    pipeline: Any,
    recipe: Recipe,
    out: Path,
    latent: tuple[int, int] | None,
    known: Known,
    progress: Progress,
) -> list[str]:
    """The parts that were made. The denoiser comes last, when nothing else is left in memory."""
    from optimum.exporters.openvino.convert import get_diffusion_models_for_export_ext

    try:
        with quiet():
            models = get_diffusion_models_for_export_ext(pipeline, exporter="openvino")[1]
            _save_rest(pipeline, models, out)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BuildError(f"optimum-intel could not export {checkpoint.id}: {_one_line(error)}") from error
    denoiser = checkpoint.family.denoiser
    names = sorted(models, key=lambda name: (name == denoiser, name))
    scale = pipeline.vae_scale_factor
    _release(pipeline)
    with progress.task("converting and compressing", total=len(names), unit="parts") as task:
        for name in names:
            _convert(checkpoint, name, models.pop(name), out)
            gc.collect()
            if latent:
                shapes.fix(out / name, latent, scale)
            own = known if name == denoiser else Known()
            compress(
                out / name,
                _component(recipe, name),
                spared=own.spared,
                calls=own.calls,
                statistics=own.statistics,
                progress=progress,
            )
            task.advance()
    return names


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


def _component(recipe: Recipe, part: str) -> Component:
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


def _quantization(component: Component) -> Any:
    """What optimum-intel calls the treatment of most of a component's layers."""
    from optimum.intel import OVMixedQuantizationConfig, OVQuantizationConfig, OVWeightQuantizationConfig

    treatment = component.default
    assert isinstance(treatment, Affine)
    if treatment.activations == "float":
        grouped: dict[str, Any] = {"group_size": treatment.group_size or -1} if treatment.bits < 8 else {}
        return OVWeightQuantizationConfig(bits=treatment.bits, sym=treatment.symmetric, **grouped)
    alpha = smoothing_of(component) or -1.0
    full = OVQuantizationConfig(bits=8, sym=False, smooth_quant_alpha=alpha)
    if treatment.activations == "int8" and not treatment.spared:
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
