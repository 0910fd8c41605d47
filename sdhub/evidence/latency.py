"""Speed, measured honestly: base and variant in alternation, in one process, on the same work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from sdhub.core.progress import SILENT, Progress
from sdhub.core.quiet import quiet
from sdhub.evidence.sampling import Sampling, draw_latents

STEPS_PER_RUN, LEAST_STEPS = 4, 2
SLOW_SECONDS, VERY_SLOW_SECONDS = 5.0, 60.0  # of a step of all pipelines
MIN_ROUNDS, MAX_ROUNDS = 3, 12
BUDGET_SECONDS = 20.0


@dataclass(frozen=True)
class Latency:
    """Median seconds of one sampling step (with guidance: two denoiser passes), and base / variant.

    `threads`: of torch. `reference`: the name of another variant that was timed along, `reference_ratio` its time
    over the variant's. `settings`: what the variant's runtime says of itself, such as its precision.
    """

    base_seconds_per_step: float
    variant_seconds_per_step: float
    ratio: float
    rounds: int
    threads: int
    reference: str | None = None
    reference_seconds_per_step: float | None = None
    reference_ratio: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return {**asdict(self), "settings": dict(self.settings)}


def alternate(
    base: Any,
    variant: Any,
    sampling: Sampling,
    *,
    reference: tuple[str, Any] | None = None,
    budget: float = BUDGET_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = SILENT,
) -> Latency:
    """Time the pipelines in alternation for about `budget` seconds, at least 3 rounds and at most 12.

    A round takes a few steps with each and decodes nothing; the time between step callbacks counts, and the first
    interval of a run, which holds its warm-up, does not. Where a step of all takes seconds a round takes two, and
    two rounds are enough, or one where it takes a minute: their spread is small beside them. Ratios are medians of
    the rounds' ratios. `reference`: a third pipeline with its name.
    """
    import torch

    pipes = [base, variant, *([reference[1]] if reference else [])]
    with progress.task("timing in alternation", total=MAX_ROUNDS, unit="rounds") as task, quiet():
        first = [_seconds_per_step(pipe, sampling, LEAST_STEPS, clock) for pipe in pipes]
        slow = sum(first) > SLOW_SECONDS
        least, steps = (
            (1 if sum(first) > VERY_SLOW_SECONDS else 2, LEAST_STEPS) if slow else (MIN_ROUNDS, STEPS_PER_RUN)
        )
        rounds = [first] if slow else []
        started = clock()
        while len(rounds) < least or (len(rounds) < MAX_ROUNDS and not slow and clock() - started <= budget):
            rounds.append([_seconds_per_step(pipe, sampling, steps, clock) for pipe in pipes])
            task.advance()
    seconds = [statistics.median(times) for times in zip(*rounds, strict=True)]
    ratios = [statistics.median(times[number] / times[1] for times in rounds) for number in range(len(pipes))]
    return Latency(
        base_seconds_per_step=seconds[0],
        variant_seconds_per_step=seconds[1],
        ratio=ratios[0],
        rounds=len(rounds),
        threads=torch.get_num_threads(),
        reference=reference[0] if reference else None,
        reference_seconds_per_step=seconds[2] if reference else None,
        reference_ratio=ratios[2] if reference else None,
    )


def _seconds_per_step(pipe: Any, sampling: Sampling, steps: int, clock: Callable[[], float]) -> float:
    """The median of one short run."""
    ticks: list[float] = []
    short = replace(sampling, prompts=sampling.prompts[:1], steps=steps)
    draw_latents(pipe, short.prompts[0], short, on_step=lambda _: ticks.append(clock()))
    return statistics.median(after - before for before, after in pairwise(ticks))
