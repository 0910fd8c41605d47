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
    from sdhub.compression.trajectories import Drive

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
    component: str = "unet",
    layers: Collection[str] | Callable[[str, Any], bool] | None = None,
    *,
    gram: bool | Callable[[str, Any], bool] = True,
    tokens: int = 0,
    progress: Progress = SILENT,
) -> dict[str, LayerStatistics]:
    """Statistics of the inputs of a component's layers, as `sdhub.compression.calibration.collect` gives them.

    The denoiser is run along the trajectories of all prompts, a text encoder over their texts.
    """
    from sdhub.compression.calibration import collect

    drive = _texts(pipeline, calibration) if component.startswith("text_encoder") else None
    with progress.task("calibrating", total=_steps(calibration) if drive is None else None, unit="steps") as task:
        return collect(
            getattr(pipeline, component),
            drive or _trajectories(pipeline, calibration, lambda *_: task.advance()),
            layers,
            gram=gram,
            gram_rows=calibration.rows,
            block=calibration.block,
            tokens=tokens,
            seed=calibration.seed,
        )


def _steps(calibration: Calibration) -> int:
    from sdhub.compression.calibration import spread

    return len(calibration.prompts) * (max(spread(calibration.steps, calibration.recorded)) + 1)


def _trajectories(pipeline: Any, calibration: Calibration, on_step: Callable[[int, int], None]) -> Drive:
    from sdhub.compression.calibration import spread, trajectories

    return trajectories(
        pipeline,
        calibration.prompts,
        range(calibration.seed, calibration.seed + len(calibration.prompts)),
        steps=calibration.steps,
        guidance=calibration.guidance,
        keep=spread(calibration.steps, calibration.recorded),
        size=(calibration.width, calibration.height),
        on_step=on_step,
    )


def _texts(pipeline: Any, calibration: Calibration) -> Drive:
    def drive(_: Any) -> None:
        for prompt in calibration.prompts:
            pipeline.encode_prompt(
                prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=calibration.guidance > 1
            )

    return drive
