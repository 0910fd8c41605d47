"""Variants called `coreml-mixed-4.5bit`: what each layer gets is found by an analysis of the checkpoint.

A backend's recipe of such a name says the formats and the size; the analysis, kept in the work folder, the layers.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from sdhub.backends.base import Backend
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.core.device import CPU, on_device
from sdhub.core.hub import Hub
from sdhub.core.isolated import run_isolated
from sdhub.core.progress import Progress
from sdhub.recipes.presets import mixed_bits
from sdhub.recipes.recipe import Recipe
from sdhub.workflow.stages import Base

RECIPE, CURVE = "recipe.json", "curve.png"


def is_open(recipe: Recipe) -> bool:
    """Whether the treatments of layers are still to be found."""
    return mixed_bits(recipe.name) is not None and recipe.analysis is None


def analyzed(base: Base, backend: Backend, recipe: Recipe) -> Path:
    """A folder with the whole `recipe.json`, and `curve.png`: PSNR over size, with other sizes beside it.

    Raises UsageError for a size that cannot be kept.
    """
    key = {
        "source": base.identity,
        "recipe": recipe.sha256,
        "backend": [backend.name, backend.revision],
        "versions": backend.versions(),
        **({} if base.device == CPU else {"device": on_device(base.device)}),
    }

    def make(out: Path) -> None:
        run_isolated(run_analysis, base.checkpoint, base.hub, recipe, base.device, out, progress=base.progress)

    return base.work.stage("mixed", key, make, progress=base.progress, label=f"analyze for {recipe.name}")


def run_analysis(
    checkpoint: Checkpoint, hub: Hub, recipe: Recipe, device: str, out: Path, progress: Progress
) -> None:
    """Fill `out` as `analyzed` says."""
    from sdhub.workflow.analyze import Wanted, analyze

    found = analyze(checkpoint, replace(Wanted.of(recipe), device=device), progress, source_hub=hub)
    (out / RECIPE).write_text(json.dumps(found.recipes[0].document()), encoding="utf-8")
    found.draw(out / CURVE)
