"""What evidence may cost, and what that buys, known before anything is done.

In falling order of information for time: what the denoisers predict at points of the base's own trajectories
(noise SNR), whole pictures from the same seeds at a reduced size, more prompts, more steps, the full size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

from sdhub.core.errors import UsageError
from sdhub.evidence.sampling import Sampling

Level = Literal["quick", "standard", "full"]
MINUTES: dict[str, float] = {"quick": 5.0, "standard": 20.0, "full": inf}
NOISE_PROMPTS, POINTS = 4, 4  # whose trajectories a variant is led through, and how many points of each
# Prompts, steps, and the share of the full side; None is all of them.
RUNGS: tuple[tuple[int | None, int | None, float], ...] = (
    (1, 4, 1 / 2),
    (2, 4, 1 / 2),
    (2, 4, 3 / 4),
    (2, 6, 3 / 4),
    (2, 8, 3 / 4),
    (3, 8, 3 / 4),
    (4, 8, 3 / 4),
    (4, 12, 3 / 4),
    (4, 12, 1),
    (4, None, 1),
    (None, None, 1),
)
WELL = 3 / 4  # of the full side: what a family still draws well
GRID = 64  # pixels that sides are multiples of
LEAST_SIDE = 256  # below it nothing is reduced
TIMED_STEPS = 4  # of base, variant and reference, where a step takes seconds


@dataclass(frozen=True)
class Budget:
    """Minutes of evidence for all variants of a checkpoint. Raises UsageError for one that means nothing."""

    level: Level = "standard"
    """A name for minutes: quick 5, standard 20, full as many as it takes."""
    minutes: float | None = None
    """Instead of the level's."""

    def __post_init__(self) -> None:
        if self.level not in MINUTES:
            raise UsageError(f"no evidence is called {str(self.level)[:40]!r}", hint=", ".join(MINUTES))
        if self.minutes is not None and not 0 < self.minutes < inf:
            raise UsageError(f"{self.minutes:g} minutes of evidence mean nothing", hint="a number above zero")

    @property
    def bound(self) -> float:
        """In minutes, infinite for as many as it takes."""
        return MINUTES[self.level] if self.minutes is None else self.minutes

    def document(self) -> dict[str, Any]:
        """The JSON form; no bound is null."""
        return {"level": self.level, "minutes": None if self.bound == inf else self.bound}


STANDARD = Budget()


@dataclass(frozen=True)
class Cost:
    """Seconds, forecast, of the base in float32 at a width and height in pixels."""

    step: Callable[[int, int], float]
    """A sampling step of one picture, with guidance where there is some."""
    decode: Callable[[int, int], float]
    """From latents to a picture."""
    relative: tuple[float, ...]
    """Of each variant, what it takes over what the base takes."""


@dataclass(frozen=True)
class Scope:
    """What is measured of a checkpoint's variants."""

    sampling: Sampling
    """How pictures are drawn."""
    whole: bool
    """Whether everything is: the checkpoint's own size, steps and prompts, and what stands beside a variant (the
    same runtime without compression, the same formats without calibration)."""
    seconds: float
    """Forecast of all of it, for all variants."""
    budget: Budget = STANDARD
    more: Scope | None = None
    """What the next larger budget would buy."""

    def document(self) -> dict[str, Any]:
        """The JSON form of the forecast."""
        more = self.more and {**_said(self.more), "minutes": round(self.more.seconds / 60, 1)}
        return {
            **self.budget.document(),
            **_said(self),
            "whole": self.whole,
            "forecast_minutes": round(self.seconds / 60, 1),
            "more": more,
        }


def afforded(full: Sampling, budget: Budget, cost: Cost, *, fixed: bool, exact: bool) -> Scope:
    """The most that `budget` buys of `full`.

    `fixed`: graphs have one size, which is not reduced; `exact`: neither are prompts and steps, as somebody asked
    for them. The least there is is measured even where it costs more.
    """
    scopes = [
        Scope(sampling, whole, seconds_of(sampling, cost, whole=whole), budget)
        for sampling, whole in _ladder(full, fixed=fixed, exact=exact)
    ]
    chosen = max((n for n, each in enumerate(scopes) if each.seconds <= budget.bound * 60), default=0)
    more = next((each for each in scopes[chosen + 1 :] if each.seconds > budget.bound * 60), None)
    return replace(scopes[chosen], more=more)


def seconds_of(sampling: Sampling, cost: Cost, *, whole: bool) -> float:
    """Forecast of measuring all variants; the base is drawn once.

    A variant draws all pictures, is led through points of trajectories, is timed beside the base, and draws one
    picture more when what was published is checked. `whole` adds the runtime without compression, and the formats
    without calibration.
    """
    size = sampling.width, sampling.height
    step, decode, count = cost.step(*size), cost.decode(*size), len(sampling.prompts)
    picture = sampling.steps * step + decode
    predictions = min(count, NOISE_PROMPTS) * min(POINTS, sampling.steps) * step
    timing = TIMED_STEPS * step
    own = (count + 1) * picture + predictions + timing + (count * picture + timing if whole else 0)
    return count * picture + sum(each * own + timing for each in cost.relative)


def _ladder(full: Sampling, *, fixed: bool, exact: bool) -> Iterator[tuple[Sampling, bool]]:
    """From the least to the whole, each once; the whole comes first without what stands beside a variant."""
    seen = [full] if exact else []
    for prompts, steps, share in () if exact else RUNGS:
        width, height = (side if fixed else _side(side, share) for side in (full.width, full.height))
        sampling = replace(
            full,
            prompts=full.prompts[:prompts],
            steps=min(steps or full.steps, full.steps),
            width=width,
            height=height,
        )
        if sampling not in seen:
            seen.append(sampling)
    yield from ((sampling, False) for sampling in seen)
    yield full, True


def _side(full: int, share: float) -> int:
    if share == 1 or full <= LEAST_SIDE:
        return full
    return min(full, max(LEAST_SIDE, round(full * share / GRID) * GRID))


def _said(scope: Scope) -> dict[str, Any]:
    sampling = scope.sampling
    return {
        "prompts": len(sampling.prompts),
        "steps": sampling.steps,
        "width": sampling.width,
        "height": sampling.height,
    }
