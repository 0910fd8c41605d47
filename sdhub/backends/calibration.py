"""How backends of 4-bit weights calibrate a checkpoint."""

from __future__ import annotations

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.cost import call_seconds, passes
from sdhub.core.units import GIB
from sdhub.recipes.calibration import calibration_for, is_large
from sdhub.recipes.recipe import Recipe

BLOCK = 1280  # of Gram matrices: no wider than what the decomposition works on keeps a large denoiser's in memory
HUGE = 4e9  # parameters of a denoiser of which one call takes minutes


def calibrated(checkpoint: Checkpoint, preset: Recipe) -> Recipe:
    """The preset with the checkpoint's calibration; without any where the denoiser is too large to be run here."""
    part = checkpoint.component(checkpoint.family.denoiser)
    if part is not None and part.parameters > HUGE:
        return preset.uncalibrated().model_copy(update={"name": preset.name})
    usual = calibration_for(checkpoint)
    if is_large(checkpoint):
        usual = usual.model_copy(update={"block": BLOCK})
    return preset.model_copy(update={"calibration": usual})


def calibration_seconds(checkpoint: Checkpoint, recipe: Recipe) -> float:
    """Forecast of running the denoiser as the recipe's calibration says, without what is computed of it."""
    found = recipe.calibration
    if found is None:
        return 0.0
    calls = len(found.prompts) * found.steps * passes(checkpoint, found.guidance)
    return calls * call_seconds(checkpoint, found.width, found.height)


def peak_bytes(full: float, recipe: Recipe) -> int:
    """The memory that a variant takes to be made and measured, of `full` bytes in float32."""
    return int((1.6 if recipe.calibration else 1.1) * full) + 2 * GIB
