"""The built-in checkpoint with a few layers treated: what tests of backends build and open."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sdhub.backends.base import Backend
from sdhub.checkpoint.resolve import resolve
from sdhub.core.endpoint import endpoint
from sdhub.core.progress import SILENT
from sdhub.recipes.recipe import Calibration, ComponentRecipe, Float, Recipe, Treatment
from sdhub.workflow import measure

CALIBRATION = Calibration(
    prompts=("red heart", "pizza"),
    seed=5,
    steps=3,
    recorded=2,
    guidance=4.0,
    width=64,
    height=64,
    rows=96,
    block=512,
)


def recipe_for(backend: Backend, layers: dict[str, Treatment], *, calibrated: bool = True) -> Recipe:
    """Everything in float16 but these layers of the UNet."""
    preset = backend.recipe(resolve("demo"), backend.usual)
    components = {name: ComponentRecipe(default=Float()) for name in preset.components}
    components["unet"] = ComponentRecipe(default=Float(), layers=layers)
    return Recipe(
        name=f"{backend.usual}-few",
        backend=backend.name,
        components=components,
        calibration=CALIBRATION if calibrated else None,
    )


def build(backend: Backend, recipe: Recipe, out: Path) -> Path:
    """Build it of the built-in checkpoint, in this process."""
    checkpoint = resolve("demo")
    backend.accept(checkpoint, recipe)
    out.mkdir()
    pipeline = measure.load_base(checkpoint, endpoint(None), SILENT)
    backend.build(checkpoint, pipeline, recipe, out, SILENT)
    return out


def noise_predictions(pipeline: Any) -> Any:
    """What a pipeline's UNet makes of fixed inputs: (2, 4, 16, 16) float32."""
    import torch

    generator = torch.Generator().manual_seed(11)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    text = torch.randn(2, 77, 128, generator=generator)
    with torch.no_grad():
        return pipeline.unet(latents, torch.tensor([800, 200]), text)[0]


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
