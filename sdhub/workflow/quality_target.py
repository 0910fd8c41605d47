"""A recipe as fast as a quality target allows: looked for once, and kept in the work folder."""

from __future__ import annotations

import json
from pathlib import Path

from sdhub.backends.base import Backend, backends
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.core.device import on_device
from sdhub.core.hub import Hub
from sdhub.core.isolated import run_isolated
from sdhub.core.progress import Progress
from sdhub.core.quiet import quiet
from sdhub.evidence import compare, samples
from sdhub.evidence.sampling import Sampling
from sdhub.recipes.recipe import Recipe, load_recipe
from sdhub.workflow import measure
from sdhub.workflow.stages import Base

RECIPE = "recipe.json"


def meet_target(base: Base, backend: Backend, recipe: Recipe, target: float) -> Recipe:
    """`recipe` with the least share of layers in higher precision whose evidence shows `target` dB of image PSNR.

    Raises UnsupportedError where that is out of reach.
    """
    versions = backend.versions()
    reference = base.samples(versions)
    key = {
        "source": base.identity,
        "recipe": recipe.sha256,
        "backend": [backend.name, backend.revision],
        "versions": versions,
        "sampling": base.sampling.document(),
        "target": target,
        "device": [on_device(base.device), base.runtime_device],
    }

    def make(out: Path) -> None:
        where = (base.device, base.runtime_device)
        named = (base.checkpoint, base.hub, backend.name, recipe, target, base.sampling, reference, where, out)
        run_isolated(find_recipe, *named, progress=base.progress)

    label = f"look for {target:g} dB"
    return load_recipe(base.work.stage("target", key, make, progress=base.progress, label=label) / RECIPE)


def find_recipe(
    checkpoint: Checkpoint,
    hub: Hub,
    backend: str,
    recipe: Recipe,
    target: float,
    sampling: Sampling,
    reference: Path,
    where: tuple[str, str | None],
    out: Path,
    progress: Progress,
) -> None:
    """Write the recipe that `meet_target` is after into `out`; `reference` holds what the base draws; `where`: the
    devices of torch and of the backend's runtime."""
    drawn, found = samples.load(reference), backends()[backend]

    def judge(folder: Path) -> float:
        with quiet():
            pipe = found.open(folder, *where)
        return compare.compare(drawn, measure.draw_all(pipe, sampling, progress), sampling).psnr_db

    pipeline = measure.load_base(checkpoint, hub, progress, device=where[0])
    best = found.meet_target(checkpoint, pipeline, recipe, target, judge, progress)
    (out / RECIPE).write_text(json.dumps(best.document()), encoding="utf-8")
