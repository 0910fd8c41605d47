"""A recipe as fast as a floor of quality allows: looked for once, and kept in the work folder."""

from __future__ import annotations

import json
from pathlib import Path

from sdhub.backends.base import Backend, backends
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.core.hub import Hub
from sdhub.core.isolated import apart
from sdhub.core.progress import Progress
from sdhub.core.quiet import quiet
from sdhub.evidence import compare, samples
from sdhub.evidence.sampling import Sampling
from sdhub.recipes.recipe import Recipe, load_recipe
from sdhub.workflow import measure
from sdhub.workflow.stages import Base

RECIPE = "recipe.json"


def reached(base: Base, backend: Backend, recipe: Recipe, floor: float) -> Recipe:
    """`recipe` with the least share of spared layers whose evidence shows at least `floor` dB of image PSNR.

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
        "floor": floor,
    }

    def make(out: Path) -> None:
        base.release()  # memory is short
        named = (base.checkpoint, base.hub, backend.name, recipe, floor, base.sampling, reference, out)
        apart(look, *named, progress=base.progress)

    label = f"look for {floor:g} dB"
    return load_recipe(base.work.stage("floor", key, make, progress=base.progress, label=label) / RECIPE)


def look(
    checkpoint: Checkpoint,
    hub: Hub,
    backend: str,
    recipe: Recipe,
    floor: float,
    sampling: Sampling,
    reference: Path,
    out: Path,
    progress: Progress,
) -> None:
    """Write the recipe that `reached` is after into `out`; `reference` holds what the base draws."""
    drawn, found = samples.load(reference), backends()[backend]

    def judge(folder: Path) -> float:
        with quiet():
            pipe = found.open(folder)
        return compare.compare(drawn, measure.draw_all(pipe, sampling, progress), sampling).psnr_db

    pipeline = measure.load_base(checkpoint, hub, progress)
    best = found.reach(checkpoint, pipeline, recipe, floor, judge, progress)
    (out / RECIPE).write_text(json.dumps(best.document()), encoding="utf-8")
