"""As fast as a quality target allows: the least share of layers in higher precision that reaches it."""

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


def meet_target(
    checkpoint: Checkpoint,
    pipeline: Any,
    recipe: Recipe,
    target: float,
    judge: Callable[[Path], float],
    progress: Progress,
) -> Recipe:
    """`recipe` with the least share of `SHARES` at which the variant has `target` dB.

    `judge(folder)`: the PSNR of a built variant in dB. Found by bisection, as more layers in higher
    precision are closer to the original; the share that is returned was judged itself. The pipeline is consumed:
    calibrated and converted once, its denoiser compressed for every share. Raises UnsupportedError where the
    recipe keeps no layers in higher precision or the target cannot be met.
    """
    denoiser = checkpoint.family.denoiser
    if not isinstance(recipe.components[denoiser].default, Affine) or recipe.calibration is None:
        raise UnsupportedError(f"{recipe.name}: only calibrated variants have a quality target")
    judged: dict[float, float] = {}
    with temporary() as place:
        variant, kept = place / "variant", place / "kept"
        variant.mkdir()
        known = prepare(checkpoint, pipeline, _with_share(recipe, denoiser, LEAST), progress)
        for part in convert(checkpoint, pipeline, recipe, variant, progress):
            if part != denoiser:
                compress_part(checkpoint, recipe, variant / part, known, progress)
        (variant / denoiser).rename(kept)
        with progress.task(f"looking for {target:g} dB", total=TRIES, unit="shares") as task:

            def reaches(share: float) -> bool:
                shutil.rmtree(variant / denoiser, ignore_errors=True)
                shutil.copytree(kept, variant / denoiser)
                tried = _with_share(recipe, denoiser, share)
                compress_part(checkpoint, tried, variant / denoiser, known, progress)
                judged[share] = judge(variant)
                task.advance()
                return judged[share] >= target

            first = bisect_left(SHARES, True, key=reaches)
    if first == len(SHARES):
        raise UnsupportedError(
            f"{recipe.name} reaches {max(judged.values()):.1f} dB and not {target:g}",
            hint="weights of more bits come nearer",
        )
    return _with_share(recipe, denoiser, SHARES[first])


def _with_share(recipe: Recipe, denoiser: str, share: float) -> Recipe:
    component = recipe.components[denoiser]
    default = component.default.model_copy(update={"higher_precision": share})
    changed = component.model_copy(update={"default": default})
    return recipe.model_copy(update={"components": {**recipe.components, denoiser: changed}})
