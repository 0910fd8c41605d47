"""The card of a variant that was made by other means than `publish`: what is known of it, the rest marked so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdhub.backends.base import backends
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.core.documents import parse_object
from sdhub.core.endpoint import endpoint
from sdhub.core.errors import MissingExtraError, RecipeError
from sdhub.core.nearly import meant
from sdhub.evidence.compare import folder_bytes
from sdhub.publishing import card as cards
from sdhub.publishing.publication import Publication
from sdhub.publishing.terms import settle_all
from sdhub.recipes.recipe import load_recipe
from sdhub.workflow.build import RECIPE
from sdhub.workflow.plan import sampling_for
from sdhub.workflow.usage import usage

MAX_EVIDENCE = 16 * 2**20


def card_of(folder: Path, checkpoint: Checkpoint, repo_id: str, *, license: str | None = None) -> str:
    """README.md for a variant's folder that holds its `recipe.json`, as `sdhub build` leaves it.

    Figures come from `evidence/evidence.json` where the folder has it; without one only sizes are stated. Raises
    RecipeError without a recipe or its backend, LicenseError as `publish`.
    """
    recipe = load_recipe(folder / RECIPE)
    backend = backends().get(recipe.backend)
    if backend is None:
        raise RecipeError(f"no backend is called {recipe.backend}", hint=meant(recipe.backend, backends()))
    sampling = sampling_for(checkpoint)
    publication = Publication(
        repo_id=repo_id,
        checkpoint=checkpoint,
        identity=checkpoint.sha or "unknown",
        license=settle_all(checkpoint, license),
        variant=recipe.name,
        description=backend.describe(recipe.name) or "made by a recipe of its own (recipe.json)",
        folder=folder,
        library=backend.library,
        tags=backend.tags,
        install=backend.install,
        usage=usage(checkpoint.pipeline, backend.usage(checkpoint.pipeline, repo_id), sampling),
        recipe=recipe.document(),
        evidence=_evidence(folder, checkpoint),
        versions=_versions(backend),
        contact_sheet=_there(folder / "evidence" / "contact_sheet.png"),
        source_endpoint=endpoint(None).url,
        notes=tuple(backend.notes(checkpoint, recipe)),
        checks=backend.checks,
    )
    return cards.card(publication)


def _evidence(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    path = folder / "evidence" / "evidence.json"
    if not path.is_file():
        return {"bytes": folder_bytes(folder), "base_bytes": checkpoint.bytes}
    if path.stat().st_size > MAX_EVIDENCE:
        raise RecipeError(f"{path} has more than {MAX_EVIDENCE} bytes")
    return parse_object(path.read_bytes(), str(path))


def _versions(backend: Any) -> dict[str, str]:
    try:
        return dict(backend.versions())
    except MissingExtraError:
        return {}


def _there(path: Path) -> Path | None:
    return path if path.is_file() else None
