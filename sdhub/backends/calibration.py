"""How backends of 4-bit weights calibrate a checkpoint."""

from __future__ import annotations

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.recipes.calibration import LARGE, calibration_for
from sdhub.recipes.recipe import Calibration

PROMPTS, STEPS = 3, 4
BLOCK = 1280


def brief_calibration(checkpoint: Checkpoint) -> Calibration:
    """The checkpoint's usual calibration; of a large denoiser, whose calls take seconds, a dozen of them.

    Gram matrices are as wide as what the decomposition works on, which keeps a large denoiser's in memory.
    """
    usual = calibration_for(checkpoint)
    part = checkpoint.component(checkpoint.family.denoiser)
    if part is None or part.parameters <= LARGE:
        return usual
    steps = min(STEPS, usual.steps)
    few = {"prompts": usual.prompts[:PROMPTS], "steps": steps, "recorded": steps, "block": BLOCK}
    return usual.model_copy(update=few)
