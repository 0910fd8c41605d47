"""Calls of a denoiser along real sampling trajectories, kept in files and read one by one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.core.progress import SILENT, Progress
from sdhub.core.units import GIB
from sdhub.recipes.recipe import Calibration

if TYPE_CHECKING:
    import torch

    from sdhub.compression.calibration import LayerStatistics

# Calls that sensitivity is measured on, and the side of the latents that is left of them; fewer, and less, of a
# denoiser whose calls take seconds.
JUDGED, SIDE = 24, 64
LARGE_JUDGED, LARGE_SIDE = 8, 32
GRAM_BYTES = 6 * GIB  # of the Gram matrices of all layers together


class Calls:
    """Inputs of a denoiser, each a call of batch 1, by the names of its arguments.

    Of a call with guidance, whose batch holds the empty prompt and the prompt, one is kept: the prompt's of the
    first, the empty one's of the second, and so on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Mapping[str, torch.Tensor]]:
        """From the files, in the order they were recorded."""
        return self.some(self.count)

    def some(self, most: int) -> Iterator[Mapping[str, torch.Tensor]]:
        """At most so many, evenly spread."""
        from safetensors.torch import load_file

        count = min(most, self.count)
        for number in range(count):
            yield load_file(self.folder / f"{number * self.count // count}.safetensors")

    def add(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Keep one row of a call."""
        from safetensors.torch import save_file

        batch = inputs[latents_of(inputs)].shape[0]
        row = (self.count + 1) % batch
        rows = {
            name: each[row : row + 1] if each.ndim and each.shape[0] == batch else each
            for name, each in inputs.items()
        }
        kept = {name: each.contiguous().clone().cpu() for name, each in rows.items()}
        save_file(kept, self.folder / f"{self.count}.safetensors")
        self.count += 1


def latents_of(inputs: Mapping[str, torch.Tensor]) -> str:
    """What the argument is called that holds the latents: a UNet's, or a transformer's."""
    return "sample" if "sample" in inputs else "hidden_states"


def run(denoiser: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a denoiser of diffusers makes of one recorded call."""
    named = dict(inputs)
    if "sample" not in named:
        from_transformer: torch.Tensor = denoiser(return_dict=False, **named)[0]
        return from_transformer
    added = {name: named.pop(name) for name in ("text_embeds", "time_ids") if name in named}
    made: torch.Tensor = denoiser(
        named.pop("sample"), named.pop("timestep"), added_cond_kwargs=added or None, return_dict=False, **named
    )[0]
    return made


def record(
    pipeline: Any,
    denoiser: Any,
    calibration: Calibration,
    folder: Path,
    *,
    layers: frozenset[str] = frozenset(),
    gram: frozenset[str] = frozenset(),
    block: int | None = None,
    progress: Progress = SILENT,
) -> tuple[Calls, dict[str, LayerStatistics]]:
    """The calls of the pipeline's denoiser that `calibration` asks for.

    Also the statistics of the inputs of its `layers`, with Gram matrices of those in `gram`.
    """
    from sdhub.compression.calibration import collect, spread, trajectories
    from sdhub.evidence.given import given

    calls, kept = Calls(folder), spread(calibration.steps, calibration.recorded)
    count = len(calibration.prompts)
    recording, names = [False], list(inspect.signature(denoiser.forward).parameters)

    def before(_: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        if recording[0]:
            calls.add(_named(dict(zip(names, args, strict=False)) | given))

    with progress.task("calibrating", total=count * (max(kept) + 1), unit="steps") as task:
        drive = trajectories(
            pipeline,
            calibration.prompts,
            range(calibration.seed, calibration.seed + count),
            steps=calibration.steps,
            guidance=calibration.guidance,
            keep=kept,
            given=given(pipeline, calibration.steps, calibration.width, calibration.height),
            on_step=lambda *_: task.advance(),
        )

        def both(layers: Any) -> None:
            def switch(on: bool) -> None:
                layers(on)
                recording[0] = on

            drive(switch)

        hook = denoiser.register_forward_pre_hook(before, with_kwargs=True)
        try:
            statistics = collect(
                denoiser,
                both,
                layers,
                gram=lambda name, _: name in gram,
                gram_rows=calibration.rows,
                block=block or calibration.block,
                tokens=0,
                seed=calibration.seed,
            )
        finally:
            hook.remove()
    return calls, statistics


def _named(given: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Numbers among the arguments of a call, those in `added_cond_kwargs` too."""
    import torch

    named = dict(given)
    named.update(named.pop("added_cond_kwargs", None) or {})
    return {name: torch.as_tensor(each) for name, each in named.items() if _is_numeric(name, each)}


def _is_numeric(name: str, value: Any) -> bool:
    import torch

    return name != "return_dict" and isinstance(value, (torch.Tensor, int, float))
