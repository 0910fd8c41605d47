"""Driving a diffusers pipeline through seeded trajectories, for `calibration.collect`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from sdhub.core.errors import UsageError

Switch = Callable[[bool], None]
Drive = Callable[[Switch], None]


def trajectories(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    keep: Collection[int] | None = None,
    given: Mapping[str, Any] = MappingProxyType({}),
    on_step: Callable[[int, int], None] | None = None,
) -> Drive:
    """A drive for `collect`: each prompt with its seed, sampled by a diffusers pipeline, observed at `keep`.

    `keep`: step indices from 0 (see `spread`), None for all; a trajectory ends with the last of them, and nothing
    is decoded. `given`: further arguments of the pipeline, such as `width` and `height`. Initial latents come from
    a CPU generator per prompt. `on_step(done, total)` is called after every step.
    """
    kept = frozenset(range(steps) if keep is None else keep)
    if not kept or not kept <= set(range(steps)):
        raise UsageError(f"steps {sorted(kept)} of a trajectory of {steps} steps", hint=f"0 to {steps - 1}")
    if len(prompts) != len(seeds):
        raise UsageError(f"{len(prompts)} prompts and {len(seeds)} seeds")
    length = max(kept) + 1

    def drive(observe: Switch) -> None:
        pipe.set_progress_bar_config(disable=True)
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):

            def after(
                running: Any, step: int, _: Any, tensors: dict[str, Any], done: int = number * length
            ) -> Any:
                observe(step + 1 in kept)
                running._interrupt = step + 1 >= length
                if on_step:
                    on_step(done + step + 1, len(prompts) * length)
                return tensors

            observe(0 in kept)
            pipe(
                prompt,
                guidance_scale=guidance,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="latent",
                callback_on_step_end=after,
                **{"num_inference_steps": steps, **given},
            )
            observe(False)

    return drive


def spread(steps: int, count: int) -> tuple[int, ...]:
    """`count` step indices spread evenly over 0 to `steps` - 1, first and last among them (one: the middle)."""
    count = min(count, steps)
    if count <= 1:
        return (steps // 2,)
    return tuple(round(index * (steps - 1) / (count - 1)) for index in range(count))
