"""The Core ML backend."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from sdhub.backends.base import Backend, Forecast
from sdhub.backends.calibration import calibration_seconds
from sdhub.backends.coreml.presets import PRESETS, choices
from sdhub.backends.coreml.specs import STEP
from sdhub.backends.coreml.usual import BLOCKS, USUAL, USUAL_UNET
from sdhub.backends.reasons import reason, unusual
from sdhub.backends.variant.layout import Layout
from sdhub.checkpoint.checkpoint import Checkpoint, Component
from sdhub.checkpoint.companions import LoadedCompanion
from sdhub.checkpoint.schedulers import fractional
from sdhub.core.documents import shown
from sdhub.core.errors import MissingExtraError, RecipeError, UnsupportedError
from sdhub.core.progress import Progress
from sdhub.core.units import GIB
from sdhub.recipes.calibration import calibration_for
from sdhub.recipes.presets import mixed_bits, preset
from sdhub.recipes.recipe import Affine, ComponentRecipe, Float, Palette, Recipe, Rounding, Treatment

WIDTHS: tuple[Literal[1, 2, 4, 6, 8], ...] = (1, 2, 4, 6, 8)  # of palettes that every system reads
REST = "text encoders in 6 bit, the VAE in 16 bit"
ATTENTION = ("split_einsum",)  # runs on every compute unit; `original` is for GPUs alone
GRAPH_BYTES = 1_500_000  # of a model.mlmodel file, beside its weights
SECONDS_PER_GIB = 30.0  # tracing, converting and writing, per GiB of 32-bit weights, on two cores
GPTQ_SECONDS_PER_GIB = 300.0
IOS18 = "iOS 18 or macOS 15"
IOS16 = "iOS 16.2 or macOS 13.1"


class CoreML(Backend):
    """Packages in Apple's layout: palettes, 8-bit grids or 16-bit floats, arithmetic in 16 bits."""

    name = "coreml"
    analyzed_as = "coreml-4bit"
    analyzed_first = True
    extra = "coreml"
    packages = ("coremltools", "diffusers", "transformers", "torch", "numpy")
    variants: Mapping[str, str] = MappingProxyType({name: each.description for name, each in PRESETS.items()})
    usual = "coreml-6bit"
    tags = ("core-ml", "coreml", "stable-diffusion", "text-to-image", "sdhub")
    library = "diffusers"
    repository = "coreml-{model}-{treatment}"
    install = 'pip install "sdhub[coreml]"'
    shows_uncalibrated = True
    fixed_sizes = True
    companions = True
    on_torch = False
    revision = 2

    @property
    def checks(self) -> Literal["usage", "sdhub"]:  # type: ignore[override]
        """Only macOS has Core ML's own runtime."""
        return "usage" if platform.system() == "Darwin" else "sdhub"

    def choices(self, rounding: Rounding) -> tuple[Treatment, ...]:
        return choices(rounding)

    def why_not(self, checkpoint: Checkpoint, variant: str) -> str | None:
        if checkpoint.family.denoiser != "unet":
            return reason(checkpoint) or f"{checkpoint.family.title} has no Core ML packages yet"
        return reason(checkpoint) or _unet(checkpoint)

    def knows(self, variant: str) -> bool:
        return variant in self.variants or _mixed(variant) is not None

    def describe_preset(self, variant: str) -> str | None:
        bits = _mixed(variant)
        if bits is None:
            return super().describe_preset(variant)
        return f"palettes of {bits:g} bits on average, each layer's width chosen by an analysis; {REST}"

    def recipe(self, checkpoint: Checkpoint, variant: str) -> Recipe:
        """Of mixed bits a recipe without layers, which an analysis finds."""
        bits, parts = _mixed(variant), [part.name for part in self.parts_of(checkpoint)]
        made = preset("coreml", PRESETS, "coreml-4bit" if bits else variant, parts)
        if bits:
            width = next(each for each in WIDTHS if each >= bits)
            whole = ComponentRecipe(default=Palette(bits=width, rounding="gptq"))
            components = {**made.components, checkpoint.family.denoiser: whole}
            made = made.model_copy(update={"name": variant, "components": components})
        calibrated = made.uncalibrated() != made
        side = checkpoint.size or checkpoint.family.size
        fitting = -(-side // STEP) * STEP
        return made.model_copy(
            update={
                "attention": ATTENTION,
                "sizes": () if fitting == side else ((fitting, fitting),),
                "calibration": calibration_for(checkpoint) if calibrated else None,
            }
        )

    def parts_of(self, checkpoint: Checkpoint) -> list[Component]:
        """All ControlNets are one more."""
        nets = [each.parameters for each in checkpoint.companions if each.kind == "controlnet"]
        more = [Component("controlnet", "diffusers", "ControlNetModel", parameters=sum(nets))] if nets else []
        return [*super().parts_of(checkpoint), *more]

    def accept(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        super().accept(checkpoint, recipe)
        for name, component in recipe.components.items():
            if component.token_merging:
                raise UnsupportedError(f"{name}: Core ML packages are made without token merging")
            for where, treatment in component.treatments.items():
                _accept(f"{name}.{where}", treatment)
        if not recipe.attention:
            raise RecipeError(f"{recipe.name}: no attention is named", hint=f"such as {list(ATTENTION)}")
        if recipe.batch:
            raise UnsupportedError(f"{recipe.name}: Core ML packages draw one picture at a time anyway")
        for width, height in recipe.sizes:
            if width % STEP or height % STEP:
                raise RecipeError(f"{recipe.name}: {width} x {height} are not multiples of {STEP}")

    def forecast(self, checkpoint: Checkpoint, recipe: Recipe) -> Forecast:
        size, parameters = 0, 0
        for part in self.parts_of(checkpoint):
            size += part.parameters * _bits(recipe.components[part.name].default) // 8 + GRAPH_BYTES
            parameters += part.parameters
            if part.name == checkpoint.family.denoiser:  # once more for ControlNets, and once in halves
                again = recipe.chunked + ("controlnet" in recipe.components) * (1 + recipe.chunked)
                size += again * (part.parameters * _bits(recipe.components[part.name].default) // 8 + GRAPH_BYTES)
        copies = len(recipe.attention) * max(len(recipe.sizes), 1)
        full = 4 * parameters / GIB
        seconds = 20 + SECONDS_PER_GIB * full * copies
        if recipe.calibration:
            seconds += GPTQ_SECONDS_PER_GIB * full + calibration_seconds(checkpoint, recipe)
        return Forecast(bytes=size * copies, peak_bytes=int((1.7 * full + 1.5) * GIB), seconds=seconds)

    def build(self, checkpoint: Checkpoint, pipeline: Any, recipe: Recipe, out: Path, progress: Progress) -> None:
        self.build_with_companions(checkpoint, pipeline, (), recipe, out, progress)

    def build_with_companions(
        self,
        checkpoint: Checkpoint,
        pipeline: Any,
        companions: Sequence[LoadedCompanion],
        recipe: Recipe,
        out: Path,
        progress: Progress,
    ) -> None:
        from sdhub.backends.coreml.build import build

        build(checkpoint, pipeline, companions, recipe, out, progress)

    def recognizes(self, folder: Path) -> bool:
        return (folder / "model_index.json").is_file() and any(folder.glob("*/packages/*.mlpackage"))

    def layout(self) -> Layout:
        from sdhub.backends.coreml.vetting import LAYOUT

        return LAYOUT

    def load(self, folder: Path) -> Any:
        try:
            from sdhub.backends.coreml.opening import open_folder
        except ImportError as error:
            raise MissingExtraError(self.extra, error.name or "coremltools") from None
        return open_folder(folder)

    def usage(self, pipeline: str, repo_id: str, revision: str | None = None) -> Sequence[str]:
        return ("import sdhub", "", f"pipe = sdhub.load({repo_id!r})")

    def notes(self, checkpoint: Checkpoint, recipe: Recipe) -> Sequence[str]:
        system = IOS18 if any(_needs_ios18(each) for each in _treatments(recipe)) else IOS16
        found = [
            f"The packages need {system} or newer.",
            "Pictures were drawn by sdhub's own reading of the packages, without Core ML; speed and memory on "
            "Apple's devices were not measured.",
            "Compiled bundles (.mlmodelc), which Apple's Swift apps load, are made by a macOS job of the GitHub "
            "workflow; they are not in this repository yet.",
        ]
        nets = [each for each in checkpoint.companions if each.kind == "controlnet"]
        for net in nets:
            said = f"licence {net.license.id}" if net.license else "its licence is not stated"
            found.append(f"The ControlNet {net.name} ({said}) goes along, and a UNet that takes what it gives.")
        if nets:
            found.append("The pictures were drawn without ControlNets.")
        if any(each.kind == "safety_checker" for each in checkpoint.companions):
            found.append("The safety checker goes along; the pictures were drawn without it.")
        if recipe.chunked:
            found.append(
                "The UNet is there in one piece, and in two halves for devices that cannot load the whole."
            )
        scheduler = checkpoint.component("scheduler")
        if scheduler is not None and fractional(scheduler):
            found.append(
                "The scheduler's timesteps have fractions: packages in Apple's layout take them in 16 bits, which "
                "above 512 are halves, and Apple's own Swift schedulers give whole ones."
            )
        vae = checkpoint.component("vae")
        if checkpoint.said.edm == "playground" or (vae is not None and vae.config.get("latents_mean")):
            found.append(
                "Latents have a mean and a deviation by channel (latents_mean, latents_std of vae/config.json): "
                "apps that only scale them, Apple's Swift pipeline among them, draw wrong colours with it."
            )
        if checkpoint.prediction_type == "v_prediction":
            found.append(
                "The model predicts v: apps whose scheduler assumes epsilon, Apple's Swift pipeline among them, "
                "draw black or noisy pictures with it."
            )
        return found

    def bundles(self, folder: Path, repo_name: str) -> Mapping[str, Path]:
        return {
            f"{repo_name}_{place.parent.name}_packages.zip": place for place in sorted(folder.glob("*/packages"))
        }


def _unet(checkpoint: Checkpoint) -> str | None:
    """What of its UNet the packages do not compute."""
    part = checkpoint.component(checkpoint.family.denoiser)
    config = part.config if part else {}
    found = unusual(config, {**USUAL, **USUAL_UNET})
    if found is not None:
        return f"{found} in the config of its unet, which Core ML packages do not compute"
    blocks = [*_listed(config.get("down_block_types")), *_listed(config.get("up_block_types"))]
    other = next((each for each in blocks if each not in BLOCKS), None)
    if other is not None:
        return f"its unet has blocks of type {shown(str(other), 60)}, which Core ML packages do not compute"
    return None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mixed(variant: str) -> float | None:
    """Bits per weight of `coreml-mixed-<bits>bit`, from 1 to 8."""
    bits = mixed_bits(variant) if variant.startswith("coreml-") and not variant.endswith("-fast") else None
    return bits if bits is not None and WIDTHS[0] <= bits <= WIDTHS[-1] else None


def _treatments(recipe: Recipe) -> list[Treatment]:
    return [each for part in recipe.components.values() for each in part.treatments.values()]


def _accept(where: str, treatment: Treatment) -> None:
    if isinstance(treatment, Float):
        if treatment.dtype == "bfloat16":
            raise UnsupportedError(f"{where}: Core ML has no bfloat16")
    elif isinstance(treatment, Affine):
        if treatment.bits != 8 or treatment.group_size or treatment.activations != "float":
            raise UnsupportedError(f"{where}: Core ML's grids are made in 8 bits per output channel, weights only")
    elif not isinstance(treatment, Palette):
        raise UnsupportedError(f"{where}: Core ML has no weights of scheme {treatment.scheme}")


def _needs_ios18(treatment: Treatment) -> bool:
    return isinstance(treatment, Palette) and (treatment.bits == 3 or treatment.group_size > 0)


def _bits(treatment: Treatment) -> int:
    return treatment.bits if isinstance(treatment, (Affine, Palette)) else 16


BACKEND = CoreML()
