"""Single steps of the main job, for those who publish nothing: build a variant, measure a variant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.fetch import fingerprint
from sdhub.checkpoint.resolve import checkpoint_of
from sdhub.core.device import AUTO, resolve, vet_word
from sdhub.core.endpoint import endpoint
from sdhub.core.errors import UsageError
from sdhub.core.progress import SILENT, Progress
from sdhub.core.work import Work, copy_tree, home, publish_folder
from sdhub.evidence.budget import Scope
from sdhub.evidence.compare import folder_bytes
from sdhub.recipes.adjust import AS_IT_IS, Adjustment
from sdhub.recipes.recipe import load_recipe
from sdhub.workflow import mixed
from sdhub.workflow.plan import choose, fitting, sampling_for
from sdhub.workflow.quality_target import meet_target
from sdhub.workflow.stages import Base, VariantStages

RECIPE = "recipe.json"


def build(
    source: str | Path | Checkpoint,
    variants: str | Sequence[str] = (),
    *,
    output: str | Path,
    recipe: Path | None = None,
    adjustment: Adjustment = AS_IT_IS,
    device: str = AUTO,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Build one variant into the new folder `output`, with its `recipe.json`.

    `device`: where it is calibrated and solved (`sdhub.core.device`). Returns name, output, bytes and
    recipe_sha256. Raises UsageError where `output` exists, more than one variant is asked for or there is no such
    device, BuildError, and what `inspect` raises.
    """
    vet_word(device)
    checkpoint, output = checkpoint_of(source), Path(output)
    variants = (variants,) if isinstance(variants, str) else variants
    if output.exists():
        raise UsageError(f"{output} exists", hint="name a folder that does not")
    chosen = choose(checkpoint, variants, recipe, adjustment)
    if len(chosen) != 1:
        raise UsageError("one variant can be built into one folder", hint="say which with --variant")
    ((backend, document),) = chosen
    backend.accept(checkpoint, document)
    where = str(resolve(device))
    hub = endpoint(None)
    identity = fingerprint(checkpoint, hub, progress=progress)
    sampling = fitting(sampling_for(checkpoint), [document])
    scope = Scope(sampling, whole=True, seconds=0)  # nothing is measured but what a quality target asks for
    base = Base(checkpoint, identity, scope, sampling, hub, Work(home() / "work"), progress, device=where)
    if mixed.is_open(document):
        document = load_recipe(mixed.analyzed(base, backend, document) / mixed.RECIPE)
    if adjustment.min_psnr is not None:
        document = meet_target(base, backend, document, adjustment.min_psnr)
    built = VariantStages(base, backend, document).build()

    def fill(folder: Path) -> None:
        copy_tree(built, folder)
        (folder / RECIPE).write_text(json.dumps(document.document(), indent=2) + "\n", encoding="utf-8")

    publish_folder(output, fill)
    return {
        "name": document.name,
        "output": str(output),
        "bytes": folder_bytes(built),
        "recipe_sha256": document.sha256,
    }
