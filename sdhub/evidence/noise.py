"""Noise SNR: what a variant's denoiser predicts beside its base's, at the same points of the base's trajectory.

A picture adds up the differences of all steps, and costs them all; a prediction at one point costs one. The base
is sampled once, as always, and its points are kept. The variant's pipeline is led through some of them: its
scheduler hands it the base's latents, whatever it predicted before, so that each prediction is compared where both
start from the same. The prediction is what the scheduler is given, after guidance.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sdhub.core.errors import EvidenceError
from sdhub.evidence.given import kind_of
from sdhub.evidence.sampling import Prompt, Sampling, draw_latents

if TYPE_CHECKING:
    from torch import Tensor

FILE = "trajectories.safetensors"
POINTS = 4  # of a trajectory, where nothing else is said


@dataclass(frozen=True)
class Point:
    """A step: its `timestep`, the latents (1, ...) that the denoiser gets, scaled, and what it predicts."""

    timestep: float
    latents: Tensor
    prediction: Tensor


Trajectory = Sequence[Point]


@dataclass(frozen=True)
class NoiseSnr:
    """Signal-to-noise ratio in dB, 10 log10(Σ ε² / Σ (ε − ε')²), by prompt and point; infinite where equal.

    `rows`: (number of the prompt, timestep, dB).
    """

    rows: tuple[tuple[int, float, float], ...]

    @property
    def median_db(self) -> float:
        """Of all points of all prompts."""
        return statistics.median(row[2] for row in self.rows)

    @property
    def worst_db(self) -> float:
        """The least of all points of all prompts."""
        return min(row[2] for row in self.rows)

    def document(self) -> dict[str, Any]:
        """The JSON form; an infinite ratio is null."""
        return {
            "median_db": _finite(self.median_db),
            "worst_db": _finite(self.worst_db),
            "points": [
                {"prompt": number, "timestep": round(timestep, 3), "snr_db": _finite(value)}
                for number, timestep, value in self.rows
            ],
        }


@contextmanager
def recorded(pipe: Any) -> Iterator[list[Point]]:
    """The points of what the pipeline samples in the block, in order."""
    points: list[Point] = []
    scheduler = pipe.scheduler
    scaled: list[Tensor] = []

    def scale(act: Callable[..., Any]) -> Callable[..., Any]:
        def scale_model_input(*arguments: Any, **named: Any) -> Any:
            found = act(*arguments, **named)
            scaled[:] = [found]
            return found

        return scale_model_input

    def step(act: Callable[..., Any]) -> Callable[..., Any]:
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *arguments: Any, **named: Any) -> Any:
            given = scaled.pop() if scaled else sample
            points.append(Point(float(timestep), _kept(given[: len(sample)]), _kept(model_output)))
            return act(model_output, timestep, sample, *arguments, **named)

        return step

    with _replaced(scheduler, scale_model_input=scale, step=step):
        yield points


@contextmanager
def played(pipe: Any, trajectory: Trajectory, chosen: Sequence[int]) -> Iterator[list[Tensor]]:
    """In the block the pipeline is led through the `chosen` points of a trajectory; what it predicts there.

    The first point has to be among them: pipelines begin with latents of their own, which are the same there.
    """
    import torch

    points = [trajectory[number] for number in chosen]
    predictions: list[Tensor] = []
    scheduler = pipe.scheduler

    def set_timesteps(act: Callable[..., Any]) -> Callable[..., Any]:
        def set_timesteps(*arguments: Any, **named: Any) -> Any:
            act(*arguments, **named)
            if len(points) < len(trajectory):
                kept = [int(number) for number in chosen]
                scheduler.timesteps = scheduler.timesteps[torch.as_tensor(kept, device=scheduler.timesteps.device)]

        return set_timesteps

    def scale(act: Callable[..., Any]) -> Callable[..., Any]:
        def scale_model_input(sample: Tensor, *_: Any, **__: Any) -> Any:
            latents = points[min(len(predictions), len(points) - 1)].latents.to(sample)
            return torch.cat([latents] * (len(sample) // len(latents)))

        return scale_model_input

    def step(act: Callable[..., Any]) -> Callable[..., Any]:
        def step(
            model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, return_dict: bool = True, **__: Any
        ) -> Any:
            predictions.append(_kept(model_output))
            following = points[min(len(predictions), len(points) - 1)].latents.to(sample)
            return SimpleNamespace(prev_sample=following) if return_dict else (following, following)

        return step

    with _replaced(scheduler, set_timesteps=set_timesteps, scale_model_input=scale, step=step):
        yield predictions


def points_of(pipe: Any, length: int, count: int) -> tuple[int, ...]:
    """Which `count` of a trajectory's `length` points a variant is led through, the first and the last among them.

    All of them where the pipeline begins in the middle of its schedule (pictures from pictures).
    """
    if kind_of(type(pipe).__name__) == "picture" or count >= length:
        return tuple(range(length))
    return tuple(sorted({round(number * (length - 1) / max(1, count - 1)) for number in range(count)}))


def noise_snr(
    pipe: Any,
    trajectories: Sequence[Trajectory],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    points: int = POINTS,
    on_call: Callable[[], None] = lambda: None,
) -> NoiseSnr:
    """The noise SNR of a variant's pipeline on the base's `trajectories`, one for each of `prompts`.

    Raises EvidenceError where the variant samples in another number of steps, or predicts another shape or numbers
    that are not finite.
    """
    rows: list[tuple[int, float, float]] = []
    for number, (prompt, trajectory) in enumerate(zip(prompts, trajectories, strict=True)):
        chosen = points_of(pipe, len(trajectory), points)
        with played(pipe, trajectory, chosen) as predictions:
            draw_latents(pipe, prompt, sampling, on_step=lambda _: on_call())
        if len(predictions) != len(chosen):
            raise EvidenceError(
                f"the variant predicts {len(predictions)} times where the base predicted {len(chosen)} times"
            )
        for at, prediction in zip(chosen, predictions, strict=True):
            rows.append((number, trajectory[at].timestep, snr_db(trajectory[at].prediction, prediction)))
    return NoiseSnr(tuple(rows))


def snr_db(reference: Tensor, other: Tensor) -> float:
    """10 log10(Σ reference² / Σ (reference − other)²); infinite where they are equal. Raises EvidenceError."""
    if reference.shape != other.shape:
        raise EvidenceError(f"predictions of {tuple(reference.shape)} and {tuple(other.shape)} cannot be compared")
    signal = float(reference.double().square().sum())
    noise = float((reference.double() - other.double()).square().sum())
    if not math.isfinite(noise):
        raise EvidenceError("the variant's denoiser predicts infinite or undefined numbers")
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)


def save(folder: Path, trajectories: Sequence[Trajectory]) -> None:
    """Write `trajectories.safetensors`; the same points give the same bytes."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for number, trajectory in enumerate(trajectories):
        for step, point in enumerate(trajectory):
            name = f"{number:02d}.{step:04d}"
            tensors[f"{name}.latents"] = point.latents.contiguous()
            tensors[f"{name}.prediction"] = point.prediction.contiguous()
            tensors[f"{name}.timestep"] = torch.tensor(point.timestep, dtype=torch.float64)
    save_file(tensors, folder / FILE)


def load(folder: Path) -> list[list[Point]]:
    """What `save` wrote."""
    from safetensors.torch import load_file

    found: dict[str, list[Point]] = {}
    tensors: Mapping[str, Tensor] = load_file(folder / FILE)
    for key in sorted(name.removesuffix(".timestep") for name in tensors if name.endswith(".timestep")):
        point = Point(float(tensors[f"{key}.timestep"]), tensors[f"{key}.latents"], tensors[f"{key}.prediction"])
        found.setdefault(key.partition(".")[0], []).append(point)
    return [found[number] for number in sorted(found)]


@contextmanager
def _replaced(scheduler: Any, **wrappers: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Methods of one scheduler wrapped for the block; their signatures, which pipelines read, stay."""
    own = [name for name in wrappers if hasattr(scheduler, name)]
    for name in own:
        act = getattr(scheduler, name)
        vars(scheduler)[name] = functools.wraps(act)(wrappers[name](act))
    try:
        yield
    finally:
        for name in own:
            vars(scheduler).pop(name, None)


def _kept(tensor: Any) -> Tensor:
    import torch

    return torch.as_tensor(tensor).detach().to("cpu", torch.float32).clone()


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else round(value, 2)
