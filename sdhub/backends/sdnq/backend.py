"""The SDNQ backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sdhub.backends.base import Forecast
from sdhub.backends.calibration import calibrated, calibration_seconds, peak_bytes
from sdhub.backends.quantized import QuantizedBackend, installed
from sdhub.backends.sdnq.config import keep
from sdhub.backends.sdnq.formats import format_of
from sdhub.backends.sdnq.presets import PRESETS, choices
from sdhub.backends.variant.files import BESIDE, WEIGHTS
from sdhub.backends.variant.layout import Layout
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.load import LOADABLE
from sdhub.core.errors import UnsupportedError
from sdhub.core.progress import Progress
from sdhub.core.units import GIB
from sdhub.recipes.presets import preset
from sdhub.recipes.recipe import Affine, ComponentRecipe, Float, Recipe, Rounding, Treatment

if TYPE_CHECKING:
    import torch

LARGE_ENCODER = 200e6  # parameters: smaller text encoders weigh little beside the denoiser
LAYERS, WIDEST = 300, 2000  # of a usual component, for the share of scales and factors in a forecast
MOST_BLOCKS = 1000  # of a text encoder that is one
SECONDS_PER_GIB = 60.0  # quantizing, per GiB of 32-bit weights, on two cores


class SDNQ(QuantizedBackend):
    """Weights of 4 or 8 bits with a low-rank part; activations and arithmetic in float, on every device."""

    name = "sdnq"
    title = "SDNQ"
    extra = "svdquant"
    presets = PRESETS
    method = "sdnq"
    analyzed_as = "sdnq-uint4"
    variants: Mapping[str, str] = MappingProxyType({name: each.description for name, each in PRESETS.items()})
    usual = "sdnq-uint4"
    spaces = "gpu"
    space_packages = ("sdnq==0.2.8",)
    tags = ("sdnq", "svdquant", "sdhub")
    repository = "{model}-sdnq-{treatment}"
    install = 'pip install "diffusers>=0.37" sdnq transformers accelerate'
    revision = 2

    def choices(self, rounding: Rounding) -> tuple[Treatment, ...]:
        return choices(rounding)

    def recipe(self, checkpoint: Checkpoint, variant: str) -> Recipe:
        made = preset(self.name, PRESETS, variant, [part.name for part in self.parts_of(checkpoint)])
        small = {
            part.name
            for part in self.parts_of(checkpoint)
            if part.name.startswith("text_encoder") and part.parameters < LARGE_ENCODER
        }
        components = {
            name: ComponentRecipe(default=Float()) if name in small else self._encoder(checkpoint, name, component)
            for name, component in made.components.items()
        }
        return calibrated(checkpoint, made.model_copy(update={"components": components}))

    def _encoder(self, checkpoint: Checkpoint, name: str, component: ComponentRecipe) -> ComponentRecipe:
        """T5's second feed-forward layers only run as symmetric 8 bits (see `build.layers_of`)."""
        part = checkpoint.component(name)
        if part is None or part.class_name != "T5EncoderModel":
            return component
        depth = part.config.get("num_layers")
        count = depth if isinstance(depth, int) and depth <= MOST_BLOCKS else 0
        layers = [f"encoder.block.{number}.layer.1.DenseReluDense.wo" for number in range(count)]
        eight = Affine(bits=8, symmetric=True, rounding="gptq")
        return component.model_copy(update={"layers": dict.fromkeys(layers, eight)})

    def accept(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        super().accept(checkpoint, recipe)
        for name, component in recipe.components.items():
            for where, treatment in component.treatments.items():
                try:
                    format_of(treatment)
                except UnsupportedError as error:
                    raise UnsupportedError(f"{name}.{where}: {error.message}") from None
            if name == "vae" and not isinstance(component.default, Float):
                raise UnsupportedError("vae: SDNQ variants keep the VAE in 16 bits")

    def forecast(self, checkpoint: Checkpoint, recipe: Recipe) -> Forecast:
        parts = self.parts_of(checkpoint)
        size = sum(
            int(part.parameters * _bits(recipe.components[part.name], part.parameters) / 8) for part in parts
        )
        full = 4 * sum(part.parameters for part in parts)
        seconds = 20 + SECONDS_PER_GIB * full / GIB + calibration_seconds(checkpoint, recipe)
        return Forecast(size, peak_bytes(full, recipe), seconds)

    def build(self, checkpoint: Checkpoint, pipeline: Any, recipe: Recipe, out: Path, progress: Progress) -> None:
        from sdhub.backends.sdnq.build import build

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
        from sdhub.backends.sdnq.build import build_streamed

        build_streamed(folder, checkpoint.family.denoiser, recipe, out, progress, device)

    def layout(self) -> Layout:
        return Layout(frozenset(LOADABLE), (*BESIDE, *WEIGHTS), quantization=keep)

    def load(self, folder: Path) -> Any:
        from sdhub.backends.sdnq.build import open_variant

        return open_variant(folder)

    def usage(self, pipeline: str, repo_id: str, revision: str | None = None) -> Sequence[str]:
        pin = f", revision={revision!r}" if revision else ""
        half = "bfloat16" if pipeline.startswith("Flux") else "float16"
        return (
            f"from diffusers import {pipeline}",
            "import sdnq  # teaches diffusers and transformers the format",
            "",
            'device = "cuda" if torch.cuda.is_available() else "cpu"  # or "mps", "xpu"',
            f'dtype = torch.float32 if device == "cpu" else torch.{half}',
            f"pipe = {pipeline}.from_pretrained({repo_id!r}{pin}, torch_dtype=dtype).to(device)",
        )

    def kernels(self, folder: Path, device: torch.device) -> str | None:
        return installed("sdnq") if device.type == "cuda" else None

    def load_native(self, folder: Path) -> Any:
        """By SDNQ's own kernels, on a GPU where there is one."""
        import sdnq  # noqa: F401 — teaches diffusers the format
        import torch
        from diffusers import DiffusionPipeline

        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float16 if device == "cuda" else torch.float32
        return DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True).to(device)

    def notes(self, checkpoint: Checkpoint, recipe: Recipe) -> Sequence[str]:
        how = "with calibration on prompts of sdhub's own" if recipe.calibration else "without calibration data"
        return (
            f"The weights were rounded {how}, after SVDQuant (Li et al., arXiv 2411.05007) and GPTQ (Frantar et "
            "al., arXiv 2210.17323); the format is that of SDNQ (Disty0).",
        )


def _bits(component: ComponentRecipe, parameters: int) -> float:
    """Bits per weight, scales and factors included, of a component's usual layer."""
    layout = format_of(component.default)
    if layout is None:
        return 16.0
    features: float = min((parameters / LAYERS) ** 0.5, WIDEST)
    scales = (16 if layout.symmetric else 32) / (layout.group_size or features)
    return float(layout.bits + scales + 32 * layout.rank / features)


BACKEND = SDNQ()
