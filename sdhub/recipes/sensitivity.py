"""What rounding errors of each layer do to the final latents, in closed form from few sampled trajectories.

One trajectory is sampled with gradients, through all its steps, and a random ±1 direction v of the final latents x
is traced back: g = ∂(v·x)/∂W of every layer at once, with guidance, scheduler and all later steps in it. To first
order an error E of the weight changes the latents by δ with E[(v·δ)²] = ‖δ‖², v·δ = ⟨g, E⟩.

Rounding to the nearest value makes errors that are independent from weight to weight, so that ‖δ‖² = Σ g² σ², σ²
the squared error of a weight. Compensated rounding leaves errors E = R diag(L) L⁻¹ instead, with independent R
and the Cholesky factor L of the inputs' Gram matrix (see `sdhub.compression.rounding`), so that there
‖δ‖² = Σ (g L⁻ᵀ diag(L))² σ²: what no layer has to be rounded for, let alone the network run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdhub.errors import UnsupportedError
from sdhub.progress import SILENT, Progress
from sdhub.recipes.calibration import calibrate
from sdhub.recipes.recipe import Calibration

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdhub.compression.calibration import LayerStatistics

DAMPING = 0.01  # that of compensated rounding
LARGE = 200e6  # parameters from which on a trajectory's activations are computed twice instead of kept


@dataclass(frozen=True)
class Response:
    """Of one layer of N output channels: mean squared change of an element of the final latents, per unit of the
    squared error of each weight of a channel; (N,) float64. `nearest`: of independent errors, `compensated`: of
    those that compensated rounding makes."""

    nearest: Tensor
    compensated: Tensor


@dataclass(frozen=True)
class Trajectory:
    """One sampled trajectory: its final latents (C, h, w), its timesteps, and each layer's response along it."""

    latents: Tensor
    timesteps: tuple[float, ...]
    responses: Mapping[str, Response]


Factors = Mapping[str, Sequence[tuple["Tensor", "Tensor"]]]


def candidates(denoiser: torch.nn.Module, least: int) -> list[str]:
    """Linear and Conv2d layers of at least `least` weights, convolutions in groups left out, in their order."""
    from torch import nn

    return [
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        and module.weight.numel() >= least
        and getattr(module, "groups", 1) == 1
    ]


def factors(statistics: Mapping[str, LayerStatistics]) -> Factors:
    """By layer and block: the order of its columns, and the Cholesky factor of its damped Gram matrix."""
    from sdhub.compression.gram import damped, factor

    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, each in statistics.items():
        found[name] = []
        for block in each.gram or ():
            order = block.diagonal().argsort(stable=True)
            found[name].append((order, factor(damped(block[order[:, None], order], DAMPING))))
    return found


def calibrated(
    pipeline: Any, setting: Calibration, component: str, layers: Sequence[str], progress: Progress = SILENT
) -> dict[str, LayerStatistics]:
    """The Gram matrices of the layers' inputs along the trajectories of `setting`."""
    return calibrate(pipeline, setting, component, layers, progress=progress)


def sample(
    pipeline: Any,
    setting: Calibration,
    number: int,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[Tensor, tuple[float, ...]]:
    """Latents (1, C, h, w) and timesteps of trajectory `number` of `setting`, with gradients where they are on."""
    import torch

    moments: list[float] = []

    def after(_: Any, __: int, moment: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        moments.append(float(moment))
        on_step()
        return tensors

    run = getattr(type(pipeline).__call__, "__wrapped__", None)
    if run is None:
        raise UnsupportedError(f"{type(pipeline).__name__} cannot be sampled with gradients")
    pipeline.set_progress_bar_config(disable=True)
    drawn = run(
        pipeline,
        setting.prompts[number],
        num_inference_steps=setting.steps,
        guidance_scale=setting.guidance,
        width=setting.width,
        height=setting.height,
        generator=torch.Generator("cpu").manual_seed(setting.seed + number),
        output_type="latent",
        callback_on_step_end=after,
    )
    latents: Tensor = drawn.images
    return latents, tuple(moments)


def trace(
    pipeline: Any,
    setting: Calibration,
    number: int,
    component: str,
    layers: Sequence[str],
    inputs: Factors,
    on_step: Callable[[], None] = lambda: None,
) -> Trajectory:
    """Trajectory `number` with the response of every layer; `inputs` from `factors`.

    It costs a call of the denoiser for every step and as much again to go back, and one more forward where the
    denoiser is large. Takes the memory of the layers' weights once more.
    """
    import torch

    denoiser = getattr(pipeline, component)
    large = sum(weight.numel() for weight in denoiser.parameters()) >= LARGE
    with _differentiable(pipeline, denoiser, layers, again=large), torch.enable_grad():
        latents, moments = sample(pipeline, setting, number, on_step)
        generator = torch.Generator().manual_seed(setting.seed + number)
        direction = torch.randint(0, 2, latents.shape, generator=generator).to(latents) * 2 - 1
        ((latents * direction).sum() / latents.numel() ** 0.5).backward()
        found = {}
        for name in layers:
            weight = denoiser.get_submodule(name).weight
            gradient, weight.grad = weight.grad, None
            if gradient is not None:
                found[name] = _response(gradient.detach().flatten(1), inputs.get(name, ()))
    return Trajectory(latents.detach()[0].float().cpu(), moments, found)


def pooled(trajectories: Sequence[Trajectory]) -> dict[str, Response]:
    """Responses over several trajectories, each with the same say.

    Some trajectories amplify every error a hundredfold; they would speak for all. So each is divided by the sum of
    its responses, and the mean is multiplied by the median of those sums.
    """
    import torch

    sums = torch.stack(
        [
            torch.stack([each.nearest.sum() for each in trajectory.responses.values()]).sum()
            for trajectory in trajectories
        ]
    )
    scales = sums.quantile(0.5) / sums / len(trajectories)
    names = [name for name in trajectories[0].responses if all(name in each.responses for each in trajectories)]
    return {
        name: Response(
            *(
                torch.stack(
                    [
                        getattr(trajectory.responses[name], kind) * scale
                        for trajectory, scale in zip(trajectories, scales, strict=True)
                    ]
                ).sum(0)
                for kind in ("nearest", "compensated")
            )
        )
        for name in names
    }


def _response(gradient: Tensor, blocks: Sequence[tuple[Tensor, Tensor]]) -> Response:
    """From the gradient (N, K) of a layer's weight."""
    import torch

    nearest = gradient.square().sum(1, dtype=torch.float64).cpu()
    if not blocks:
        return Response(nearest, nearest)
    compensated, first = torch.zeros_like(nearest), 0
    for order, lower in blocks:
        part = gradient[:, first : first + len(order)].cpu()[:, order]
        traced = torch.linalg.solve_triangular(lower, part.T, upper=False) * lower.diagonal()[:, None]
        compensated += traced.square().sum(0, dtype=torch.float64)
        first += len(order)
    return Response(nearest, compensated)


@contextmanager
def _differentiable(pipeline: Any, denoiser: Any, layers: Sequence[str], *, again: bool) -> Iterator[None]:
    """The layers' weights have gradients and nothing else; `again`: calls are computed anew on the way back."""
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    modules = [each for each in pipeline.components.values() if isinstance(each, nn.Module)]
    before = [(weight, weight.requires_grad) for module in modules for weight in module.parameters()]
    forward = denoiser.forward

    def twice(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    try:
        for weight, _ in before:
            weight.requires_grad_(False)
        for name in layers:
            denoiser.get_submodule(name).weight.requires_grad_(True)
        if again:
            denoiser.forward = twice
        yield
    finally:
        if again:
            del denoiser.forward
        for weight, wanted in before:
            weight.requires_grad_(wanted)
            weight.grad = None
