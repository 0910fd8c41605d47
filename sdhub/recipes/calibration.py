"""Calibration of a checkpoint: a fixed, local set of prompts, sampled as the checkpoint is used; no data set."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.sampling import sampling_defaults
from sdhub.core.device import of_pipeline
from sdhub.core.errors import UsageError
from sdhub.core.progress import SILENT, Progress
from sdhub.recipes.recipe import Calibration, Recipe

if TYPE_CHECKING:
    from sdhub.compression.calibration import LayerStatistics
    from sdhub.compression.trajectories import Drive

SEED = 100_000  # far from the seeds of evidence
LARGE = 200e6  # parameters
LARGE_PROMPTS, LARGE_STEPS, LARGE_ROWS = 6, 6, 1024
SMALL_PROMPTS, SMALL_STEPS, SMALL_ROWS = 32, 10, 128
GRAM_BYTES = 5 * 2**29


LEVELS = ("quick", "standard", "full")
# Prompts, steps, and the longest side in pixels, of denoisers whose calls take seconds and of others; what is not
# named is not reduced.
LARGE_LEVELS: dict[str, tuple[int, int, int]] = {"quick": (2, 3, 512), "standard": (3, 4, 512)}
SMALL_LEVELS: dict[str, tuple[int, int, int]] = {"quick": (6, 6, 512)}


def is_large(checkpoint: Checkpoint) -> bool:
    """Whether a call of its denoiser takes seconds."""
    part = checkpoint.component(checkpoint.family.denoiser)
    return part is not None and part.parameters > LARGE


def calibration_for(checkpoint: Checkpoint) -> Calibration:
    """The calibration of a checkpoint: prompts that its evidence does not show, along its own trajectories.

    A large denoiser gets 6 short trajectories of the longest prompts, each call observed; a small one 32 of 10
    steps, 6 of them observed. Both give some 30,000 rows to every Gram matrix of a layer with as many inputs.
    """
    large = is_large(checkpoint)
    known = json.loads(Path(__file__).with_name("calibration.json").read_text(encoding="utf-8"))
    shown = {text.lower() for text in checkpoint.prompts}
    prompts = [text for text in known if text.lower() not in shown]
    defaults = sampling_defaults(checkpoint)
    prompts = prompts[-LARGE_PROMPTS:] if large else _spaced(prompts, SMALL_PROMPTS)
    steps = min(LARGE_STEPS if large else SMALL_STEPS, defaults.steps)
    return Calibration(
        prompts=tuple(prompts),
        seed=SEED,
        steps=steps,
        recorded=min(6, steps),
        guidance=defaults.guidance,
        width=defaults.side,
        height=defaults.side,
        rows=LARGE_ROWS if large else SMALL_ROWS,
    )


def at_level(recipe: Recipe, checkpoint: Checkpoint, level: str) -> Recipe:
    """The recipe with no more calls of the denoiser than `level` has, and no larger ones.

    Rows of a layer are like those of larger pictures, only fewer. Sizes that a recipe fixes stay. Raises
    UsageError for a level that is none.
    """
    if level not in LEVELS:
        raise UsageError(f"no calibration is called {level[:40]!r}", hint=", ".join(LEVELS))
    most = (LARGE_LEVELS if is_large(checkpoint) else SMALL_LEVELS).get(level)
    usual = recipe.calibration
    if most is None or usual is None:
        return recipe
    prompts, steps, side = most
    if recipe.sizes:
        side = max(usual.width, usual.height)
    fewer = {
        "prompts": usual.prompts[:prompts],
        "steps": min(steps, usual.steps),
        "recorded": min(steps, usual.recorded),
        "width": min(side, usual.width),
        "height": min(side, usual.height),
    }
    return recipe.model_copy(update={"calibration": usual.model_copy(update=fewer)})


def _spaced(texts: list[str], count: int) -> list[str]:
    """`count` of them, evenly spread."""
    return [texts[index * len(texts) // count] for index in range(min(count, len(texts)))]


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

    The denoiser is run along the trajectories of all prompts, a text encoder over their texts, where the pipeline
    is placed; what is gathered there ends on the CPU. Blocks of the Gram
    matrices are as wide as the calibration says, and narrower where all together would exceed 2.5 GiB. Tokens are
    bfloat16, which is enough to judge the rounding of inputs to a few bits.
    """
    import torch

    from sdhub.compression.calibration import collect, fitting_block

    module = getattr(pipeline, component)
    block = min(calibration.block, fitting_block(module, GRAM_BYTES, layers))
    drive = _texts(pipeline, calibration) if component.startswith("text_encoder") else None
    with progress.task("calibrating", total=_steps(calibration) if drive is None else None, unit="steps") as task:
        return collect(
            module,
            drive or _trajectories(pipeline, calibration, lambda *_: task.advance()),
            layers,
            gram=gram,
            gram_rows=calibration.rows,
            block=block,
            tokens=tokens,
            dtype=torch.bfloat16,
            seed=calibration.seed,
        )


def _steps(calibration: Calibration) -> int:
    from sdhub.compression.calibration import spread

    return len(calibration.prompts) * (max(spread(calibration.steps, calibration.recorded)) + 1)


def _trajectories(pipeline: Any, calibration: Calibration, on_step: Callable[[int, int], None]) -> Drive:
    from sdhub.compression.calibration import spread, trajectories
    from sdhub.evidence.given import given

    return trajectories(
        pipeline,
        calibration.prompts,
        range(calibration.seed, calibration.seed + len(calibration.prompts)),
        steps=calibration.steps,
        guidance=calibration.guidance,
        keep=spread(calibration.steps, calibration.recorded),
        given=given(pipeline, calibration.steps, calibration.width, calibration.height),
        on_step=on_step,
    )


def _texts(pipeline: Any, calibration: Calibration) -> Drive:
    guided = {"do_classifier_free_guidance": calibration.guidance > 1}
    known = inspect.signature(pipeline.encode_prompt).parameters
    taken = {name: value for name, value in guided.items() if name in known}
    device = of_pipeline(pipeline)

    def drive(_: Any) -> None:
        for prompt in calibration.prompts:
            pipeline.encode_prompt(prompt, device=device, num_images_per_prompt=1, **taken)

    return drive
