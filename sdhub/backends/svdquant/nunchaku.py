"""The Nunchaku backend: the weights of SVDQuant in Nunchaku's own single file, for ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sdhub.backends.base import Forecast
from sdhub.backends.calibration import calibrated
from sdhub.backends.quantized import installed
from sdhub.backends.svdquant.arrangement import FLUX, SDXL
from sdhub.backends.svdquant.backend import GPUS, SVDQuant, runs
from sdhub.backends.svdquant.lite import format_of
from sdhub.backends.svdquant.presets import NUNCHAKU_PRESETS
from sdhub.backends.variant.configs import vet
from sdhub.backends.variant.files import BESIDE, WEIGHTS
from sdhub.backends.variant.keys import HINT, vet_keys
from sdhub.backends.variant.layout import File, Layout, Variant
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.headers import read_header
from sdhub.checkpoint.load import LOADABLE
from sdhub.core.device import resolve
from sdhub.core.documents import parse_object, shown
from sdhub.core.errors import BuildError, SdhubError, SourceError, UnsafeError, UnsupportedError
from sdhub.core.progress import Progress
from sdhub.recipes.presets import preset
from sdhub.recipes.recipe import LowRank, Recipe

if TYPE_CHECKING:
    import torch

    from sdhub.backends.svdquant.lite import Format

FAMILIES = ("sdxl", "flux")
PATTERN = "svdq-*.safetensors"
NAME = r"svdq-[^/]+\.safetensors"
NODES = {"sdxl": "Nunchaku SDXL UNet Loader", "flux": "Nunchaku FLUX DiT Loader"}
CLASSES = {
    "unet": ("nunchaku.models.unets.unet_sdxl", "NunchakuSDXLUNet2DConditionModel"),
    "transformer": ("nunchaku", "NunchakuFluxTransformer2dModel"),
}


class Nunchaku(SVDQuant):
    """One file for the denoiser, as ComfyUI-nunchaku loads it, beside the rest of the pipeline."""

    name = "nunchaku"
    presets = NUNCHAKU_PRESETS
    analyzed_as = ""
    variants: Mapping[str, str] = MappingProxyType(
        {name: each.description for name, each in NUNCHAKU_PRESETS.items()}
    )
    usual = ""
    tags = ("nunchaku", "svdquant", "comfyui", "sdhub")
    repository = "nunchaku-{model}-{treatment}"
    install = "pip install diffusers transformers accelerate  # and Nunchaku's own wheel, see below"

    def why_not(self, checkpoint: Checkpoint, variant: str) -> str | None:
        if checkpoint.family.name not in FAMILIES or "student" in checkpoint.traits:
            return "of Nunchaku's own files sdhub writes those of SDXL and FLUX.1"
        return super().why_not(checkpoint, variant)

    def accept(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        super().accept(checkpoint, recipe)
        component = recipe.components[checkpoint.family.denoiser]
        if component.layers or not isinstance(component.default, LowRank):
            raise UnsupportedError(
                f"{recipe.name}: Nunchaku's own files have all their layers in one format",
                hint="make an svdquant variant, where layers can be treated each in its own way",
            )

    def forecast(self, checkpoint: Checkpoint, recipe: Recipe) -> Forecast:
        usual = super().forecast(checkpoint, recipe)
        part = checkpoint.component(checkpoint.family.denoiser)
        layout = _layout(checkpoint, recipe)
        if part is None or checkpoint.family.name != "sdxl" or layout is None:
            return usual
        from sdhub.backends.svdquant.targets import unet_linears

        context = part.config.get("cross_attention_dim")
        dense = [size for size in unet_linears(part.config) if size[1] == context]  # to_k and to_v of the text
        more = sum(2 * rows * columns - layout.bits(rows, columns) / 8 for rows, columns in dense)
        return Forecast(int(usual.bytes + more), usual.peak_bytes, usual.seconds)

    def recipe(self, checkpoint: Checkpoint, variant: str) -> Recipe:
        made = preset("nunchaku", NUNCHAKU_PRESETS, variant, [part.name for part in self.parts_of(checkpoint)])
        return calibrated(checkpoint, made)

    def build(self, checkpoint: Checkpoint, pipeline: Any, recipe: Recipe, out: Path, progress: Progress) -> None:
        from sdhub.backends.svdquant.build import build_single

        build_single(pipeline, checkpoint.family.denoiser, _model(checkpoint), recipe, out, progress)

    def build_streamed(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        recipe: Recipe,
        out: Path,
        progress: Progress,
        device: torch.device | None = None,
    ) -> None:
        from sdhub.backends.svdquant.build import build_single_streamed

        model = _model(checkpoint)
        build_single_streamed(folder, checkpoint.family.denoiser, model, recipe, out, progress, device)

    def recognizes(self, folder: Path) -> bool:
        try:
            return (folder / "model_index.json").is_file() and _file(folder) is not None
        except (OSError, SdhubError):
            return False

    def layout(self) -> Layout:
        return Layout(frozenset(LOADABLE), (*BESIDE, *WEIGHTS, File(NAME, single_file)))

    def load(self, folder: Path) -> Any:
        from sdhub.backends.svdquant.build import open_single

        found = _file(folder)
        if found is None:
            raise BuildError(f"{folder} has no file of Nunchaku's")
        return open_single(folder, *found)

    def kernels(self, folder: Path, device: torch.device) -> str | None:
        found = _file(folder) if device.type == "cuda" else None
        if found is None or not runs("nvfp4" if found[0].name.startswith("svdq-fp4") else "int4", device):
            return None
        try:
            there = all(find_spec(module) for module, _ in CLASSES.values())
        except ModuleNotFoundError:  # none, or PyPI's package of that name, which is another project
            return None
        return installed("nunchaku") if there else None

    def load_native(self, folder: Path) -> Any:
        if self.kernels(folder, resolve()) is None:
            return self.load(folder)
        import torch
        from diffusers import DiffusionPipeline

        found = _file(folder)
        assert found is not None
        part = "transformer" if found[1]["model_class"] == FLUX else "unet"
        module, kind = CLASSES[part]
        denoiser = getattr(import_module(module), kind).from_pretrained(found[0])
        return DiffusionPipeline.from_pretrained(
            folder, torch_dtype=torch.bfloat16, use_safetensors=True, **{part: denoiser}
        )

    def usage(self, pipeline: str, repo_id: str, revision: str | None = None) -> Sequence[str]:
        pin = f", revision={revision!r}" if revision else ""
        part = "transformer" if pipeline.startswith("Flux") else "unet"
        module, kind = CLASSES[part]
        return (
            "from pathlib import Path",
            "",
            f"from diffusers import {pipeline}",
            "from huggingface_hub import snapshot_download",
            f"from {module} import {kind}",
            "",
            f'folder = Path(snapshot_download({repo_id!r}{pin}, ignore_patterns=["*.zip"]))',
            f'{part} = {kind}.from_pretrained(next(folder.glob("{PATTERN}")))',
            f"pipe = {pipeline}.from_pretrained(folder, {part}={part}, torch_dtype=torch.bfloat16)",
            'pipe.to("cuda")',
        )

    def notes(self, checkpoint: Checkpoint, recipe: Recipe) -> Sequence[str]:
        layout = _layout(checkpoint, recipe)
        node = NODES[checkpoint.family.name]
        return (
            f"ComfyUI: put the svdq file into `models/diffusion_models` and load it with the node “{node}” of "
            "ComfyUI-nunchaku; text encoders and VAE are those of the original.",
            "Python: Nunchaku's wheels are at https://github.com/nunchaku-tech/nunchaku/releases. The package "
            "called nunchaku on PyPI is another project: do not install it.",
            f"It runs on {GPUS[layout.precision if layout else 'int4']}; these kernels do not support Hopper.",
            *super().notes(checkpoint, recipe)[2:3],
        )


def _model(checkpoint: Checkpoint) -> str:
    """The model's name as part of a file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", checkpoint.name).strip("-.") or "model"


def _layout(checkpoint: Checkpoint, recipe: Recipe) -> Format | None:
    return format_of(recipe.components[checkpoint.family.denoiser].default)


def _file(folder: Path) -> tuple[Path, Mapping[str, str]] | None:
    """The folder's own file with its metadata."""
    for path in sorted(folder.glob(PATTERN)):
        said = read_header(path).metadata
        if {"model_class", "config", "quantization_config"} <= set(said):
            return path, said
    return None


def single_file(variant: Variant, path: str) -> None:
    """Nunchaku's own file: its header, and the config and quantization_config in its metadata."""
    where = variant.where(path)
    said = read_header(variant.tree.root / path, where).metadata
    if not {"model_class", "config", "quantization_config"} <= set(said):
        raise SourceError(f"{where} does not say what it is", hint=HINT)
    part = {SDXL: "unet", FLUX: "transformer"}.get(said["model_class"])
    entry = variant.components.get(part or "")
    if entry is None:
        raise UnsafeError(
            f"{where} is of {shown(said['model_class'], 60)}, which does not fit the index", hint=HINT
        )
    document = parse_object(said["config"].encode(), f"config of {where}")
    vet(entry.library, entry.class_name, document, f"config of {where}")
    vet_keys(
        parse_object(said["quantization_config"].encode(), f"quantization_config of {where}"),
        {"method", "weight", "activation", "rank"},
        f"quantization_config of {where}",
    )


NUNCHAKU = Nunchaku()
