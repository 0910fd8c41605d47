"""The OpenVINO backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sdhub.backends.base import Backend, Forecast
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.errors import MissingExtraError, RecipeError, UnsupportedError
from sdhub.progress import Progress
from sdhub.recipes.presets import PRESETS, preset
from sdhub.recipes.recipe import Affine, Component, Float, Recipe, Treatment

PIPELINES = {
    "StableDiffusionPipeline": "OVStableDiffusionPipeline",
    "StableDiffusionXLPipeline": "OVStableDiffusionXLPipeline",
    "LatentConsistencyModelPipeline": "OVLatentConsistencyModelPipeline",
}
GIB = 2**30
GRAPH_BYTES = 400_000  # of an .xml file, beside its weights
SECONDS_PER_GIB = 30.0  # tracing, converting and compressing, per GiB of 32-bit weights, on two cores


class OpenVINO(Backend):
    """Weights in 16 or 8 bits; activations and arithmetic in what the device prefers."""

    name = "openvino"
    extra = "openvino"
    packages = ("openvino", "nncf", "optimum-intel", "optimum", "diffusers", "transformers", "torch")
    variants: Mapping[str, str] = MappingProxyType(
        {name: each.summary for name, each in PRESETS.items() if each.backend == "openvino"}
    )
    usual = "openvino-int8"
    tags = ("openvino", "nncf", "sdhub")
    library = "diffusers"  # the Hub knows no library openvino: that is a tag
    repository = "{model}-openvino-{treatment}"
    install = 'pip install "optimum-intel[openvino]" diffusers'

    def why_not(self, checkpoint: Checkpoint, variant: str) -> str | None:
        if not checkpoint.family.buildable:
            return f"{checkpoint.family.title} can be inspected but not built yet"
        if "inpainting" in checkpoint.traits:
            return "inpainting checkpoints cannot be measured from prompts alone yet"
        if checkpoint.pipeline not in PIPELINES:
            return f"{checkpoint.pipeline} draws from a picture, not from a prompt alone"
        return None

    def recipe(self, checkpoint: Checkpoint, variant: str) -> Recipe:
        return preset(variant, [part.name for part in _parts(checkpoint)])

    def accept(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        parts = {part.name for part in _parts(checkpoint)}
        for name in sorted(parts ^ set(recipe.components)):
            fault = "is not said what to do with" if name in parts else "is not in the checkpoint"
            raise RecipeError(f"{recipe.name}: component {name} {fault}")
        for name, component in recipe.components.items():
            _accept(name, component)

    def forecast(self, checkpoint: Checkpoint, recipe: Recipe) -> Forecast:
        size, parameters = 0, 0
        for part in _parts(checkpoint):
            bits = _bits(recipe.components[part.name].default)
            size += part.parameters * bits // 8 + GRAPH_BYTES
            parameters += part.parameters
        full = 4 * parameters
        return Forecast(
            bytes=size, peak_bytes=2 * full + int(1.5 * GIB), seconds=20 + SECONDS_PER_GIB * full / GIB
        )

    def build(self, checkpoint: Checkpoint, pipeline: Any, recipe: Recipe, out: Path, progress: Progress) -> None:
        from sdhub.backends.openvino.export import export

        export(checkpoint, pipeline, recipe, out, progress)

    def recognizes(self, folder: Path) -> bool:
        return (folder / "model_index.json").is_file() and (folder / "unet" / "openvino_model.xml").is_file()

    def open(self, folder: Path) -> Any:
        try:
            from optimum.intel import OVDiffusionPipeline
        except ImportError:
            raise MissingExtraError(self.extra, "optimum-intel") from None
        return OVDiffusionPipeline.from_pretrained(folder)

    def usage(self, pipeline: str, repo_id: str, revision: str | None = None) -> Sequence[str]:
        loader = PIPELINES[pipeline]
        pin = f", revision={revision!r}" if revision else ""
        return (
            f"from optimum.intel import {loader}",
            "",
            f"pipe = {loader}.from_pretrained({repo_id!r}{pin})",
        )


def _parts(checkpoint: Checkpoint) -> list[Any]:
    """Components that are exported: those with weights, the safety checker excepted."""
    return [part for part in checkpoint.components if part.parameters and part.name != "safety_checker"]


def _accept(name: str, component: Component) -> None:
    for where, treatment in {"default": component.default, **component.layers}.items():
        if isinstance(treatment, Float):
            if treatment.dtype != "float16":
                raise UnsupportedError(f"{name}.{where}: OpenVINO files keep float weights in float16")
        elif not isinstance(treatment, Affine):
            raise UnsupportedError(f"{name}.{where}: OpenVINO has no weights of scheme {treatment.scheme}")
        elif treatment.bits != 8 or treatment.group_size:
            raise UnsupportedError(f"{name}.{where}: OpenVINO weights are made in 8 bits per output channel")
        elif where != "default":
            raise UnsupportedError(f"{name}.{where}: single layers can only be kept float16")


def _bits(treatment: Treatment) -> int:
    return treatment.bits if isinstance(treatment, Affine) else 16


BACKEND = OpenVINO()
