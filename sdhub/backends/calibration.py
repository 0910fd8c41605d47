"""How backends of 4-bit weights calibrate a checkpoint."""

from __future__ import annotations

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.core.units import GIB
from sdhub.recipes.calibration import calibration_for, is_large
from sdhub.recipes.recipe import Calibration, Recipe

PROMPTS, STEPS, SIDE = 2, 3, 512
BLOCK = 1280
HUGE = 4e9  # parameters of a denoiser of which one call takes minutes


def calibrated(checkpoint: Checkpoint, preset: Recipe) -> Recipe:
    """The preset with the checkpoint's calibration; without any where the denoiser is too large to be run here."""
    part = checkpoint.component(checkpoint.family.denoiser)
    if part is not None and part.parameters > HUGE:
        return preset.uncalibrated().model_copy(update={"name": preset.name})
    return preset.model_copy(update={"calibration": brief_calibration(checkpoint)})


def peak_bytes(full: float, recipe: Recipe) -> int:
    """The memory that a variant takes to be made and measured, of `full` bytes in float32."""
    return int((1.6 if recipe.calibration else 1.1) * full) + 2 * GIB


def brief_calibration(checkpoint: Checkpoint) -> Calibration:
    """The checkpoint's usual calibration; of a large denoiser, whose calls take seconds, half a dozen of them.

    They are at most 512 pixels wide and high: a layer's rows are like those of larger pictures, only fewer.
    Gram matrices are no wider than what the decomposition works on, which keeps a large denoiser's in memory.
    """
    usual = calibration_for(checkpoint)
    if not is_large(checkpoint):
        return usual
    steps = min(STEPS, usual.steps)
    few = {
        "prompts": usual.prompts[:PROMPTS],
        "steps": steps,
        "recorded": steps,
        "width": min(usual.width, SIDE),
        "height": min(usual.height, SIDE),
        "block": BLOCK,
    }
    return usual.model_copy(update=few)
