"""Speed, measured honestly: base and variant in alternation, in one process, on the same work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from sdhub.evidence.sampling import Sampling, draw
from sdhub.progress import SILENT, Progress
from sdhub.quiet import quiet

STEPS_PER_RUN = 4
MIN_ROUNDS, MAX_ROUNDS = 3, 12
BUDGET_SECONDS = 60.0


@dataclass(frozen=True)
class Latency:
    """Median seconds of one sampling step (with guidance: two denoiser passes), and base / variant."""

    base_seconds_per_step: float
    variant_seconds_per_step: float
    ratio: float
    rounds: int
    threads: int

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def alternate(
    base: Any,
    variant: Any,
    sampling: Sampling,
    *,
    budget: float = BUDGET_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = SILENT,
) -> Latency:
    """Time both pipelines in alternation for about `budget` seconds, at least 3 rounds and at most 12.

    A round draws a few steps with each; the time between step callbacks counts, and the first interval of a
    run, which holds its warm-up, does not. The ratio is the median of the rounds' ratios.
    """
    import torch

    times: tuple[list[float], list[float]] = ([], [])
    started = clock()
    with progress.task("timing in alternation", total=MAX_ROUNDS, unit="rounds") as task, quiet():
        for pipe in (base, variant):
            _seconds_per_step(pipe, sampling, clock)
        for number in range(MAX_ROUNDS):
            if number >= MIN_ROUNDS and clock() - started > budget:
                break
            for pipe, found in zip((base, variant), times, strict=True):
                found.append(_seconds_per_step(pipe, sampling, clock))
            task.advance()
    ratios = [slow / fast for slow, fast in zip(*times, strict=True)]
    return Latency(
        base_seconds_per_step=statistics.median(times[0]),
        variant_seconds_per_step=statistics.median(times[1]),
        ratio=statistics.median(ratios),
        rounds=len(ratios),
        threads=torch.get_num_threads(),
    )


def _seconds_per_step(pipe: Any, sampling: Sampling, clock: Callable[[], float]) -> float:
    """The median of one short run."""
    ticks: list[float] = []
    short = Sampling(sampling.prompts[:1], STEPS_PER_RUN, sampling.guidance, sampling.width, sampling.height)
    draw(pipe, short.prompts[0], short, on_step=lambda _: ticks.append(clock()))
    return statistics.median(after - before for before, after in pairwise(ticks))
