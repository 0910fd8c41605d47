"""Calibration of a checkpoint: a fixed, local set of prompts, sampled as the checkpoint is used; no data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.progress import SILENT, Progress
from sdhub.recipes.recipe import Calibration

if TYPE_CHECKING:
    from sdhub.compression.calibration import LayerStatistics

SEED = 100_000  # far from the seeds of evidence
LARGE = 200e6  # parameters of a denoiser whose calls take seconds
LARGE_PROMPTS, LARGE_STEPS = 6, 6


def calibration_for(checkpoint: Checkpoint) -> Calibration:
    """The calibration of a checkpoint: prompts that its evidence does not show, along its own trajectories.

    A large denoiser gets few, short trajectories (36 calls, all recorded), of the longest prompts; a small one all
    of them, with 10 calls recorded of each.
    """
    part = checkpoint.component(checkpoint.family.denoiser)
    large = part is not None and part.parameters > LARGE
    known = json.loads(Path(__file__).with_name("calibration.json").read_text(encoding="utf-8"))
    shown = {text.lower() for text in checkpoint.prompts}
    prompts = [text for text in known if text.lower() not in shown]
    side = checkpoint.size or checkpoint.family.size
    steps = checkpoint.steps or checkpoint.family.steps
    guidance = checkpoint.family.guidance if checkpoint.guidance is None else checkpoint.guidance
    if checkpoint.traits & {"turbo", "lcm"}:
        steps, guidance = checkpoint.steps or 4, checkpoint.guidance or 0.0
    return Calibration(
        prompts=tuple(prompts[-LARGE_PROMPTS:] if large else prompts),
        seed=SEED,
        steps=min(LARGE_STEPS, steps) if large else steps,
        recorded=min(LARGE_STEPS if large else 10, steps),
        guidance=float(guidance),
        width=side,
        height=side,
    )


def calibrate(
    pipeline: Any,
    calibration: Calibration,
    layers: Collection[str] | Callable[[str, Any], bool] | None = None,
    *,
    denoiser: str = "unet",
    gram: bool | Callable[[str, Any], bool] = True,
    tokens: int = 0,
    progress: Progress = SILENT,
) -> dict[str, LayerStatistics]:
    """Statistics of the inputs of the denoiser's layers, as `sdhub.compression.calibration.collect` gives them."""
    from sdhub.compression.calibration import collect, spread, trajectories

    kept = spread(calibration.steps, calibration.recorded)
    count = len(calibration.prompts)
    with progress.task("calibrating", total=count * (max(kept) + 1), unit="steps") as task:
        drive = trajectories(
            pipeline,
            calibration.prompts,
            range(calibration.seed, calibration.seed + count),
            steps=calibration.steps,
            guidance=calibration.guidance,
            keep=kept,
            size=(calibration.width, calibration.height),
            on_step=lambda *_: task.advance(),
        )
        return collect(
            getattr(pipeline, denoiser),
            drive,
            layers,
            gram=gram,
            gram_rows=calibration.rows,
            block=calibration.block,
            tokens=tokens,
            seed=calibration.seed,
        )
