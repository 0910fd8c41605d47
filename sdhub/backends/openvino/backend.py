"""The OpenVINO backend."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sdhub.backends.base import Backend, Forecast
from sdhub.backends.calibration import calibration_seconds
from sdhub.backends.openvino import telemetry
from sdhub.backends.openvino.calls import GRAM_BYTES, JUDGED, LARGE_JUDGED, LARGE_SIDE, SIDE
from sdhub.backends.openvino.presets import PRESETS, choices
from sdhub.backends.openvino.shapes import UNGUIDED
from sdhub.backends.reasons import TINY, reason
from sdhub.backends.variant.beside import load_beside
from sdhub.backends.variant.layout import Layout
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.cost import call_seconds
from sdhub.core.errors import MissingExtraError, RecipeError, UnsupportedError, UsageError
from sdhub.core.progress import Progress
from sdhub.core.units import GIB
from sdhub.recipes.calibration import calibration_for, is_large
from sdhub.recipes.presets import preset
from sdhub.recipes.recipe import Affine, Calibration, ComponentRecipe, Float, Recipe, Rounding, Treatment

if TYPE_CHECKING:
    import torch

PIPELINES = {
    name: f"OV{name}"
    for name in (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "LatentConsistencyModelPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
        "SanaPipeline",
        "SanaSprintPipeline",
    )
}
PRECISIONS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
MERGING = re.compile(r"(?P<base>.+)-tome(?P<ratio>0\.[0-9]{1,2})")
MOST_MERGED = 0.7
ROUNDING_PROMPTS, LARGE_ROUNDING_STEPS = 8, 3  # ranges of activations settle sooner than Gram matrices
GRAPH_BYTES = 400_000  # of an .xml file, beside its weights
SECONDS_PER_GIB = 30.0  # tracing, converting and compressing, per GiB of 32-bit weights, on two cores
PIXELS = 8  # a side of a latent position, about


class OpenVINO(Backend):
    """Weights in 16, 8 or 4 bits, and activations in 8 where asked; other arithmetic in what the device prefers.

    Variants of a name that ends in `-tome<ratio>` merge that share of the tokens (0.1 to 0.7) and have one size.
    """

    name = "openvino"
    analyzed_as = "openvino-int4"
    extra = "openvino"
    packages = ("openvino", "nncf", "optimum-intel", "optimum", "diffusers", "transformers", "torch")
    variants: Mapping[str, str] = MappingProxyType({name: each.description for name, each in PRESETS.items()})
    usual = demo = "openvino-int8"
    spaces = "any"
    tags = ("openvino", "nncf", "sdhub")
    library = "diffusers"  # the Hub knows no library openvino: that is a tag
    repository = "{model}-openvino-{treatment}"
    install = 'pip install "optimum-intel[openvino]" diffusers'
    revision = 6
    relative_seconds = 0.5  # with AVX2; with VNNI less
    runtime_devices = ("CPU", "GPU", "NPU")
    on_torch = False

    def knows(self, variant: str) -> bool:
        return _merging(variant)[0] in self.variants

    def meet_target(
        self,
        checkpoint: Checkpoint,
        pipeline: Any,
        recipe: Recipe,
        target: float,
        judge: Callable[[Path], float],
        progress: Progress,
    ) -> Recipe:
        from sdhub.backends.openvino.quality_target import meet_target

        telemetry.off()
        return meet_target(checkpoint, pipeline, recipe, target, judge, progress)

    def describe_preset(self, variant: str) -> str | None:
        base, ratio = _merging(variant)
        said = super().describe_preset(base)
        if said is None or not ratio:
            return said
        return f"{said}; {ratio:.0%} of the tokens merged in the largest self-attention"

    def choices(self, rounding: Rounding) -> tuple[Treatment, ...]:
        return choices(rounding)

    def why_not(self, checkpoint: Checkpoint, variant: str) -> str | None:
        if (found := reason(checkpoint)) is not None:
            return found
        vae = checkpoint.component("vae")
        if vae is not None and vae.class_name == TINY:
            return f"optimum-intel loads no {TINY}: put the VAE that the model was trained with in its place"
        if _merging(variant)[1] and checkpoint.family.denoiser != "unet":
            return "token merging is for UNets"
        if checkpoint.pipeline not in PIPELINES:
            return f"optimum-intel has no pipeline for {checkpoint.pipeline}"
        return None

    def recipe(self, checkpoint: Checkpoint, variant: str) -> Recipe:
        base, ratio = _merging(variant)
        made = preset("openvino", PRESETS, base, [part.name for part in self.parts_of(checkpoint)])
        denoiser = checkpoint.family.denoiser
        component = made.components[denoiser]
        update: dict[str, Any] = {"name": variant, "calibration": _calibration(checkpoint, component)}
        if ratio:
            side = checkpoint.size or checkpoint.family.size
            merged = component.model_copy(update={"token_merging": ratio})
            update |= {"components": {**made.components, denoiser: merged}, "sizes": ((side, side),)}
        return made.model_copy(update=update)

    def accept(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        super().accept(checkpoint, recipe)
        for name, component in recipe.components.items():
            _accept(recipe, name, component, is_denoiser=name == checkpoint.family.denoiser)
        if recipe.chunked:
            raise UnsupportedError(f"{recipe.name}: OpenVINO has no denoisers in two halves")
        if recipe.attention:
            raise UnsupportedError(f"{recipe.name}: OpenVINO has no choice of attention")
        if len(recipe.sizes) > 1:
            raise UnsupportedError(f"{recipe.name}: OpenVINO variants have one fixed size, or none")
        if recipe.sizes and checkpoint.family.denoiser != "unet":
            raise UnsupportedError(f"{recipe.name}: sizes are fixed for UNets only")
        if recipe.batch and not recipe.sizes:
            raise UnsupportedError(f"{recipe.name}: a fixed batch needs a fixed size too")

    def forecast(self, checkpoint: Checkpoint, recipe: Recipe) -> Forecast:
        size, parameters = 0, 0
        for part in self.parts_of(checkpoint):
            size += int(part.parameters * _bits(recipe.components[part.name].default) / 8) + GRAPH_BYTES
            parameters += part.parameters
        full = 4 * parameters
        denoiser = checkpoint.component(checkpoint.family.denoiser)
        largest = 4 * denoiser.parameters if denoiser else full
        gram = 0
        if any(_uses_gptq(each) for each in recipe.components.values()):
            gram = min(GRAM_BYTES, 2 * largest)
        return Forecast(
            bytes=size,
            peak_bytes=max(full + largest // 2 + gram, 2 * largest) + GIB,
            seconds=20
            + SECONDS_PER_GIB * full / GIB
            + calibration_seconds(checkpoint, recipe)
            + _judging_seconds(checkpoint, recipe),
        )

    def build(self, checkpoint: Checkpoint, pipeline: Any, recipe: Recipe, out: Path, progress: Progress) -> None:
        from sdhub.backends.openvino.export import export

        telemetry.off()
        export(checkpoint, pipeline, recipe, out, progress)

    def recognizes(self, folder: Path) -> bool:
        denoisers = (folder / name / "openvino_model.xml" for name in ("unet", "transformer"))
        return (folder / "model_index.json").is_file() and any(each.is_file() for each in denoisers)

    def layout(self) -> Layout:
        from sdhub.backends.openvino.vetting import layout

        return layout(frozenset({*PIPELINES, *PIPELINES.values()}))

    def vet_runtime_device(self, name: str) -> None:
        super().vet_runtime_device(name)
        try:
            from openvino import Core
        except ImportError:
            raise MissingExtraError(self.extra, "openvino") from None
        there = Core().available_devices
        if name not in {each.partition(".")[0] for each in there}:
            raise UsageError(f"OpenVINO has no device {name} here", hint=f"there are: {', '.join(there)}")

    def load(self, folder: Path) -> Any:
        return self._load(folder, "CPU")

    def load_on(self, folder: Path, device: torch.device, runtime_device: str | None = None) -> Any:
        return self._load(folder, runtime_device or "CPU")

    def _load(self, folder: Path, device: str) -> Any:
        telemetry.off()
        try:
            from optimum.intel import OVDiffusionPipeline
        except ImportError:
            raise MissingExtraError(self.extra, "optimum-intel") from None
        from sdhub.backends.openvino.graph import require_readable

        parts = load_beside(folder)
        try:
            return OVDiffusionPipeline.from_pretrained(folder, device=device, **parts)
        except Exception:
            require_readable(folder)
            raise

    def settings(self, pipeline: Any) -> Mapping[str, str]:
        compiled = (pipeline.unet or pipeline.transformer).request
        if compiled is None:
            return {}
        found = {"precision": compiled.get_property("INFERENCE_PRECISION_HINT").to_string()}
        if pipeline._device == "CPU":
            found["threads"] = str(compiled.get_property("INFERENCE_NUM_THREADS"))
        return found

    def described(self, pipeline: Any) -> Mapping[str, str]:
        said = self.settings(pipeline).get("precision", "f32")
        return {"device": f"OpenVINO {pipeline._device}", "precision": PRECISIONS.get(said, said)}

    def plain(self, checkpoint: Checkpoint, pipeline: Any, folder: Path, out: Path) -> str | None:
        from sdhub.backends.openvino.export import plain_denoiser

        telemetry.off()
        return f"{self.name}-fp16" if plain_denoiser(checkpoint, pipeline, folder, out) else None

    def usage(self, pipeline: str, repo_id: str, revision: str | None = None) -> Sequence[str]:
        loader = PIPELINES[pipeline]
        pin = f", revision={revision!r}" if revision else ""
        return (
            f"from optimum.intel import {loader}",
            "",
            f"pipe = {loader}.from_pretrained({repo_id!r}{pin})",
        )

    def notes(self, checkpoint: Checkpoint, recipe: Recipe) -> Sequence[str]:
        if not recipe.sizes:
            return ()
        width, height = recipe.sizes[0]
        said = f"Pictures are {width} × {height} pixels"
        if recipe.batch:
            guided = "without" if checkpoint.traits & UNGUIDED else "with"
            said += f", one at a time and {guided} guidance"
        return (f"{said}: the graphs have fixed shapes.",)


def _merging(variant: str) -> tuple[str, float]:
    """A variant's name without its token merging, and the ratio of that; 0 where there is none."""
    match = MERGING.fullmatch(variant)
    if match is None:
        return variant, 0.0
    ratio = float(match["ratio"])
    usual = f"{ratio:g}" == match["ratio"] and 0 < ratio <= MOST_MERGED
    return (match["base"], ratio) if usual else (variant, 0.0)


def _calibration(checkpoint: Checkpoint, component: ComponentRecipe) -> Calibration | None:
    if not any(_calibrated(each) for each in component.treatments.values()):
        return None
    usual = calibration_for(checkpoint)
    if _uses_gptq(component):
        return usual
    if is_large(checkpoint):
        return usual.model_copy(update={"recorded": min(LARGE_ROUNDING_STEPS, usual.recorded)})
    stride = max(len(usual.prompts) // ROUNDING_PROMPTS, 1)
    return usual.model_copy(update={"prompts": usual.prompts[::stride][:ROUNDING_PROMPTS]})


def _calibrated(treatment: Treatment) -> bool:
    """Whether a treatment asks what the layers' inputs are."""
    if not isinstance(treatment, Affine):
        return False
    return treatment.activations != "float" or treatment.rounding == "gptq" or treatment.higher_precision > 0


def _uses_gptq(component: ComponentRecipe) -> bool:
    return any(isinstance(each, Affine) and each.rounding == "gptq" for each in component.treatments.values())


def _accept(recipe: Recipe, name: str, component: ComponentRecipe, *, is_denoiser: bool) -> None:
    for where, treatment in component.treatments.items():
        _accept_treatment(f"{name}.{where}", treatment)
        if isinstance(treatment, Affine) and treatment.higher_precision and where != "default":
            raise UnsupportedError(f"{name}.{where}: a single layer has no share in higher precision")
        if _calibrated(treatment) and not is_denoiser:
            raise UnsupportedError(f"{name}.{where}: only the denoiser is calibrated")
        if _calibrated(treatment) and recipe.calibration is None:
            raise RecipeError(
                f"{name}.{where}: needs a calibration and the recipe has none",
                hint="take it from a preset's recipe",
            )
    smoothing = {
        each.smoothing
        for each in component.treatments.values()
        if isinstance(each, Affine) and each.activations != "float"
    }
    if len(smoothing) > 1:
        raise UnsupportedError(f"{name}: layers cannot be smoothed each in its own way")
    if component.token_merging and not (is_denoiser and len(recipe.sizes) == 1):
        raise UnsupportedError(f"{name}: token merging is for the denoiser, and needs one fixed size")
    calibration = recipe.calibration
    if component.token_merging and calibration and (calibration.width, calibration.height) != recipe.sizes[0]:
        raise RecipeError(f"{name}: tokens that merge at one size are calibrated at another")


def _accept_treatment(where: str, treatment: Treatment) -> None:
    if isinstance(treatment, Float):
        if treatment.dtype != "float16":
            raise UnsupportedError(f"{where}: OpenVINO files keep float weights in float16")
    elif not isinstance(treatment, Affine):
        raise UnsupportedError(f"{where}: OpenVINO has no weights of scheme {treatment.scheme}")
    elif treatment.bits not in (4, 8):
        raise UnsupportedError(f"{where}: OpenVINO weights are made in 4 or 8 bits")
    elif treatment.activations == "float":
        if treatment.smoothing:
            raise UnsupportedError(f"{where}: there is nothing to smooth where activations stay float")
    elif treatment.bits != 8 or treatment.group_size or treatment.rounding != "round_to_nearest":
        raise UnsupportedError(
            f"{where}: layers that compute in integers have 8-bit weights, rounded to the nearest"
        )


def _bits(treatment: Treatment) -> float:
    """Bits of a weight, with its share of scales and zero points."""
    if not isinstance(treatment, Affine):
        return 16
    codes = treatment.bits * (1 - treatment.higher_precision) + 8 * treatment.higher_precision
    scales = 16 + (0 if treatment.symmetric else treatment.bits)
    return codes + (scales / treatment.group_size if treatment.group_size else 0)


def _judging_seconds(checkpoint: Checkpoint, recipe: Recipe) -> float:
    """Of measuring sensitivity, where layers stay in higher precision: a backward pass takes as long as two calls,
    what is rounded in every layer as long as three."""
    found = recipe.calibration
    if found is None or not recipe.keeps_higher_precision:
        return 0.0
    judged, side = (LARGE_JUDGED, LARGE_SIDE) if is_large(checkpoint) else (JUDGED, SIDE)
    width, height = min(found.width, side * PIXELS), min(found.height, side * PIXELS)
    return 6 * min(found.calls, judged) * call_seconds(checkpoint, width, height)


BACKEND = OpenVINO()
