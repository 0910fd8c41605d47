"""As fast as a floor of quality allows: the least share of spared layers that reaches it."""

from __future__ import annotations

import shutil
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdhub.backends.openvino.export import compress_part, convert, prepare
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.core.errors import UnsupportedError
from sdhub.core.progress import Progress
from sdhub.core.scratch import temporary
from sdhub.recipes.recipe import Affine, Recipe

SHARES = (0.0, 0.01, 0.02, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0)
LEAST = 0.01  # so that costs are measured
TRIES = 4  # of a search by halves among the shares


def reach(
    checkpoint: Checkpoint,
    pipeline: Any,
    recipe: Recipe,
    floor: float,
    judge: Callable[[Path], float],
    progress: Progress,
) -> Recipe:
    """`recipe` with the least share of `SHARES` at which the variant has `floor` dB.

    `judge(folder)`: the PSNR of a built variant in dB. Found by halves, as more spared layers are closer to the
    original; the share that is returned was judged itself. The pipeline is consumed: calibrated and converted
    once, its denoiser compressed for every share. Raises UnsupportedError where the recipe has nothing to spare or
    the floor is out of reach.
    """
    denoiser = checkpoint.family.denoiser
    if not isinstance(recipe.components[denoiser].default, Affine) or recipe.calibration is None:
        raise UnsupportedError(f"{recipe.name}: only calibrated variants have a floor of quality")
    judged: dict[float, float] = {}
    with temporary() as place:
        variant, kept = place / "variant", place / "kept"
        variant.mkdir()
        known = prepare(checkpoint, pipeline, _sparing(recipe, denoiser, LEAST), progress)
        for part in convert(checkpoint, pipeline, recipe, variant, progress):
            if part != denoiser:
                compress_part(checkpoint, recipe, variant / part, known, progress)
        (variant / denoiser).rename(kept)
        with progress.task(f"looking for {floor:g} dB", total=TRIES, unit="shares") as task:

            def reaches(share: float) -> bool:
                shutil.rmtree(variant / denoiser, ignore_errors=True)
                shutil.copytree(kept, variant / denoiser)
                tried = _sparing(recipe, denoiser, share)
                compress_part(checkpoint, tried, variant / denoiser, known, progress)
                judged[share] = judge(variant)
                task.advance()
                return judged[share] >= floor

            first = bisect_left(SHARES, True, key=reaches)
    if first == len(SHARES):
        raise UnsupportedError(
            f"{recipe.name} reaches {max(judged.values()):.1f} dB and not {floor:g}",
            hint="weights of more bits come nearer",
        )
    return _sparing(recipe, denoiser, SHARES[first])


def _sparing(recipe: Recipe, denoiser: str, share: float) -> Recipe:
    component = recipe.components[denoiser]
    default = component.default.model_copy(update={"spared": share})
    changed = component.model_copy(update={"default": default})
    return recipe.model_copy(update={"components": {**recipe.components, denoiser: changed}})
