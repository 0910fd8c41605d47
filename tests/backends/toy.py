"""A backend of another distribution: the checkpoint in 16 bits, its weights rounded as the recipe says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdhub.backends.base import Backend, Forecast
from sdhub.backends.variant.files import BESIDE, WEIGHTS
from sdhub.backends.variant.layout import File, Layout
from sdhub.recipes.presets import Preset, preset
from sdhub.recipes.recipe import Affine, Float, Treatment
from sdhub.recipes.weights import compress

PRESETS = {"toy-half": Preset("16-bit weights", weights=Float())}
PIPELINES = frozenset({"StableDiffusionPipeline"})


class Toy(Backend):
    """Half precision, in a folder of diffusers; what a recipe rounds is stored as it is dequantized."""

    name = "toy"
    extra = "torch"
    packages = ("diffusers", "torch")
    variants: Mapping[str, str] = {name: each.description for name, each in PRESETS.items()}
    usual = ""
    tags = ("toy",)
    library = "diffusers"
    repository = "{model}-toy-{treatment}"
    install = "pip install diffusers"
    checks = "sdhub"
    analyzed_as = "toy-half"

    def choices(self, rounding: str) -> tuple[Treatment, ...]:
        return (Affine(bits=4), Affine(bits=8), Float())

    def why_not(self, checkpoint: Any, variant: str) -> str | None:
        return None if checkpoint.pipeline in PIPELINES else "toys are Stable Diffusion"

    def recipe(self, checkpoint: Any, variant: str) -> Any:
        return preset(
            self.name, PRESETS, variant, [part.name for part in checkpoint.components if part.parameters]
        )

    def accept(self, checkpoint: Any, recipe: Any) -> None:
        pass

    def forecast(self, checkpoint: Any, recipe: Any) -> Forecast:
        parameters = sum(part.parameters for part in checkpoint.components)
        return Forecast(2 * parameters, 8 * parameters, 5.0)

    def build(self, checkpoint: Any, pipeline: Any, recipe: Any, out: Path, progress: Any) -> None:
        import torch

        for name, component in recipe.components.items():
            layers = dict(getattr(pipeline, name).named_modules())
            weights = {each: layers[each].weight for each in layers if hasattr(layers[each], "weight")}
            for each, grid in compress(weights, component):
                layers[each].weight.data.copy_(grid.dequantize())
        pipeline.to(torch.float16).save_pretrained(out)
        (out / "toy.txt").write_text("a toy")

    def recognizes(self, folder: Path) -> bool:
        return (folder / "toy.txt").is_file()

    def layout(self) -> Layout:
        return Layout(PIPELINES, (*BESIDE, *WEIGHTS, File(r"toy\.txt")))

    def load(self, folder: Path) -> Any:
        import torch
        from diffusers import DiffusionPipeline

        return DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)

    def usage(self, pipeline: str, repo_id: str, revision: str | None = None) -> Sequence[str]:
        return (f"from diffusers import {pipeline}", "", f"pipe = {pipeline}.from_pretrained({repo_id!r})")


BACKEND = Toy()
