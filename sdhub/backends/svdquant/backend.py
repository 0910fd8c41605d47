"""The SVDQuant backend."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sdhub.backends.base import Forecast
from sdhub.backends.calibration import calibrated, calibration_seconds, peak_bytes
from sdhub.backends.folder import quantized_parts
from sdhub.backends.quantized import QuantizedBackend, installed
from sdhub.backends.svdquant.lite import METHOD, W4A4, format_of, keep
from sdhub.backends.svdquant.presets import PRESETS, choices
from sdhub.backends.svdquant.targets import flux_modulations, share
from sdhub.backends.variant.files import BESIDE, WEIGHTS
from sdhub.backends.variant.layout import Layout
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.load import LOADABLE
from sdhub.core.device import resolve
from sdhub.core.documents import parse_object
from sdhub.core.errors import UnsupportedError
from sdhub.core.progress import Progress
from sdhub.core.units import GIB
from sdhub.recipes.presets import find, preset
from sdhub.recipes.recipe import Affine, Float, LowRank, Recipe, Rounding, Treatment

if TYPE_CHECKING:
    import torch

LEAST_SHARE = 1 / 3  # of the denoiser's weights, below which the variant is not worth its trouble
SECONDS_PER_GIB = 70.0  # quantizing, per GiB of 32-bit weights, on two cores
MODULATIONS = Affine(bits=4, group_size=64)  # of FLUX, as Nunchaku has them
GPUS = {
    "int4": "NVIDIA GPUs of the generations Turing, Ampere and Ada (compute capability 7.5, 8.0, 8.6, 8.9)",
    "nvfp4": "NVIDIA GPUs of the generation Blackwell (compute capability 12.0 and 12.1)",
}
CAPABILITIES = {"int4": ((7, 5), (8, 0), (8, 6), (8, 9)), "nvfp4": ((12, 0), (12, 1))}  # theirs
CONSENT = "DIFFUSERS_TRUST_REMOTE_KERNELS"


class SVDQuant(QuantizedBackend):
    """4-bit weights with a 16-bit part of low rank, and arithmetic in 4 bits, on NVIDIA's GPUs."""

    name = "svdquant"
    title = "SVDQuant"
    extra = "svdquant"
    presets = PRESETS
    method = METHOD
    analyzed_as = "svdquant-int4"
    variants: Mapping[str, str] = MappingProxyType({name: each.description for name, each in PRESETS.items()})
    usual = "svdquant-int4"
    tags: tuple[str, ...] = ("svdquant", "nunchaku", "sdhub")
    repository = "{model}-svdquant-{treatment}"
    install = 'pip install "diffusers>=0.40" kernels transformers accelerate'
    revision = 2

    def choices(self, rounding: Rounding) -> tuple[Treatment, ...]:
        return choices(rounding)

    def why_not(self, checkpoint: Checkpoint, variant: str) -> str | None:
        if (found := super().why_not(checkpoint, variant)) is not None:
            return found
        part = checkpoint.component(checkpoint.family.denoiser)
        wanted = find(self.presets, variant)
        layout = format_of(wanted.weights) if wanted else None
        if part is None or layout is None:
            return None
        try:
            taken, bits = share(part.config, part.parameters, layout)
        except (KeyError, TypeError, ValueError):
            way = ": give --config, which does" if checkpoint.source.single else ""
            return f"the config of its {part.name} does not say which layers it has{way}"
        if taken >= LEAST_SHARE:
            return None
        size = bits / 8 + 2 * part.parameters * (1 - taken)
        return (
            f"the kernels take {taken:.0%} of its {part.name}'s weights (others are no multiples of 128 wide), "
            f"and {size / 1e9:.2g} of {2 * part.parameters / 1e9:.2g} GB would remain; sdnq-uint4 takes nearly all"
        )

    def recipe(self, checkpoint: Checkpoint, variant: str) -> Recipe:
        made = preset(self.name, self.presets, variant, [part.name for part in self.parts_of(checkpoint)])
        denoiser = checkpoint.family.denoiser
        if checkpoint.family.name == "flux":
            part = checkpoint.component(denoiser)
            layers = dict.fromkeys(flux_modulations(part.config if part else {}), MODULATIONS)
            component = made.components[denoiser].model_copy(update={"layers": layers})
            made = made.model_copy(update={"components": {**made.components, denoiser: component}})
        return calibrated(checkpoint, made)

    def accept(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        super().accept(checkpoint, recipe)
        for name, component in recipe.components.items():
            if name == checkpoint.family.denoiser:
                _accept_layers(name, component.treatments)
            elif not all(_sixteen(treatment) for treatment in component.treatments.values()):
                raise UnsupportedError(f"{name}: SVDQuant variants keep all but the denoiser in 16 bits")

    def forecast(self, checkpoint: Checkpoint, recipe: Recipe) -> Forecast:
        parts = self.parts_of(checkpoint)
        size = 0.0
        for part in parts:
            layout = format_of(recipe.components[part.name].default)
            taken, bits = 0.0, 0
            if layout is not None and part.name == checkpoint.family.denoiser:
                taken, bits = share(part.config, part.parameters, layout)
            size += bits / 8 + 2 * part.parameters * (1 - taken)
        full = 4 * sum(part.parameters for part in parts)
        seconds = 20 + SECONDS_PER_GIB * full / GIB + calibration_seconds(checkpoint, recipe)
        return Forecast(int(size), peak_bytes(full, recipe), seconds)

    def build(self, checkpoint: Checkpoint, pipeline: Any, recipe: Recipe, out: Path, progress: Progress) -> None:
        from sdhub.backends.svdquant.build import build

        build(pipeline, checkpoint.family.denoiser, recipe, out, progress)

    def build_streamed(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        recipe: Recipe,
        out: Path,
        progress: Progress,
        device: torch.device | None = None,
    ) -> None:
        from sdhub.backends.svdquant.build import build_streamed

        build_streamed(folder, checkpoint.family.denoiser, recipe, out, progress, device)

    def layout(self) -> Layout:
        return Layout(frozenset(LOADABLE), (*BESIDE, *WEIGHTS), quantization=keep)

    def load(self, folder: Path) -> Any:
        from sdhub.backends.svdquant.build import open_variant

        return open_variant(folder)

    def kernels(self, folder: Path, device: torch.device) -> str | None:
        """Those that diffusers gets from the Hub, where the user lets it (CONSENT) and they know the GPU."""
        consent = os.environ.get(CONSENT, "").lower() in ("1", "true", "yes", "on")
        if device.type != "cuda" or not consent or not find_spec("diffusers.quantizers.nunchaku"):
            return None
        said = quantized_parts(folder, self.method).values()
        layers: Mapping[str, Any] = next((each[W4A4] for each in said if isinstance(each.get(W4A4), dict)), {})
        if not runs(str(layers.get("precision")), device):
            return None
        return installed("kernels")

    def load_native(self, folder: Path) -> Any:
        """By the kernels on the first GPU, where they are here."""
        if self.kernels(folder, resolve()) is None:
            return self.load(folder)
        import torch
        from diffusers import DiffusionPipeline

        document = parse_object((folder / "model_index.json").read_bytes(), "model_index.json")
        dtype = torch.bfloat16 if str(document["_class_name"]).startswith("Flux") else torch.float16
        return DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True)

    def usage(self, pipeline: str, repo_id: str, revision: str | None = None) -> Sequence[str]:
        pin = f", revision={revision!r}" if revision else ""
        dtype = "bfloat16" if pipeline.startswith("Flux") else "float16"
        return (
            "import os",
            "",
            "# The kernels are downloaded from the Hub and run: diffusers asks for your consent.",
            'os.environ["DIFFUSERS_TRUST_REMOTE_KERNELS"] = "true"',
            f"from diffusers import {pipeline}",
            "",
            f'pipe = {pipeline}.from_pretrained({repo_id!r}{pin}, torch_dtype=torch.{dtype}).to("cuda")',
        )

    def notes(self, checkpoint: Checkpoint, recipe: Recipe) -> Sequence[str]:
        layout = format_of(recipe.components[checkpoint.family.denoiser].default)
        how = "calibrated on prompts of sdhub's own" if recipe.calibration else "without calibration data"
        return (
            f"It runs on {GPUS[layout.precision if layout else 'int4']}; these kernels do not support Hopper.",
            "The package called nunchaku on PyPI is another project: do not install it for this.",
            f"The method is SVDQuant (Li et al., arXiv 2411.05007), {how}, with a decomposition in closed form "
            "and GPTQ (Frantar et al., arXiv 2210.17323).",
            "LoRAs cannot be loaded onto it: fuse them first.",
        )


def _accept_layers(name: str, treatments: Mapping[str, Any]) -> None:
    formats = set()
    for where, treatment in treatments.items():
        try:
            layout = format_of(treatment)
        except UnsupportedError as error:
            raise UnsupportedError(f"{name}.{where}: {error.message}") from None
        if isinstance(treatment, LowRank) and layout is not None:
            formats.add((layout.precision, layout.rank))
    if len(formats) > 1:
        raise UnsupportedError(f"{name}: all 4-bit layers of a component have one type and one rank")


def runs(precision: str, device: torch.device) -> bool:
    """Whether a device is a GPU that the kernels of this precision are made for."""
    if device.type != "cuda":
        return False
    import torch

    return torch.cuda.get_device_capability(device) in CAPABILITIES.get(precision, ())


def _sixteen(treatment: Treatment) -> bool:
    return isinstance(treatment, Float) and treatment.dtype != "float32"


BACKEND = SVDQuant()
