"""What rounding errors of each layer do to the final latents, from few sampled trajectories with gradients.

A trajectory is sampled with gradients, through all its steps, and a random ±1 direction v of the final latents x
is traced back: g = ∂(v·x)/∂W of every layer at once, with guidance, scheduler and all later steps in it. To first
order an error E of the weight changes the latents by δ with v·δ = ⟨g, E⟩, and over directions ⟨g, E⟩² has the
mean ‖δ‖².

Of errors of rounding to the nearest value, which are about independent from weight to weight, Σ g² E² is a far
steadier estimate of that than ⟨g, E⟩² is. It fails where a layer's inputs are few and alike, as those of a
timestep's embedding are; so it is scaled, layer by layer, by how much the one exceeds the other over all
treatments and traces.

GPTQ (see `sdhub.compression.gptq`) leaves errors E = R diag(L) L⁻¹ with independent R, L the
Cholesky factor of the inputs' Gram matrix: ‖δ‖² is Σ (g L⁻ᵀ diag(L))² R², which no layer has to be rounded for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from sdhub.core.errors import UnsupportedError
from sdhub.core.progress import SILENT, Progress
from sdhub.evidence.given import given
from sdhub.recipes.calibration import calibrate
from sdhub.recipes.recipe import Calibration, Treatment
from sdhub.recipes.treatments import residuals

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdhub.compression.calibration import LayerStatistics

DAMPING = 0.01  # that of GPTQ
SAMPLE, LEAST_ROWS = 2**16, 16  # weights, and channels, that a treatment's errors are made of
MANY, FEW = 8, 2  # how often a prior is counted beside a layer's, and a treatment's, own figures
RECOMPUTED_FROM = 200e6  # parameters; a trajectory's activations are computed twice then instead of kept


@dataclass(frozen=True)
class Trace:
    """One traced trajectory: its final latents (C, h, w), its timesteps, and of each layer g as (N, K) bfloat16,
    in units in which its square is a mean over the latents' elements."""

    latents: Tensor
    timesteps: tuple[float, ...]
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True)
class Factor:
    """What a layer's inputs let GPTQ do: by block the order of its columns and the Cholesky factor
    of its damped Gram matrix. `doubt`: how little was observed of the inputs, K / (K + vectors); errors that are
    moved to where nothing was observed (a timestep's embedding is one vector a call) show up in other pictures.
    """

    blocks: Sequence[tuple[Tensor, Tensor]]
    doubt: float


Factors = Mapping[str, Factor]


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
    """By layer what its inputs let GPTQ do."""
    from sdhub.compression.gram import damped, factor

    found: dict[str, Factor] = {}
    for name, each in statistics.items():
        if not each.gram:
            continue
        blocks = []
        for block in each.gram:
            order = block.diagonal().argsort(stable=True)
            blocks.append((order, factor(damped(block[order[:, None], order], DAMPING))))
        columns = sum(len(order) for order, _ in blocks)
        found[name] = Factor(blocks, columns / (columns + each.vectors))
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
        guidance_scale=setting.guidance,
        generator=torch.Generator("cpu").manual_seed(setting.seed + number),
        output_type="latent",
        callback_on_step_end=after,
        **given(pipeline, setting.steps, setting.width, setting.height),
    )
    latents: Tensor = drawn.images
    return latents, tuple(moments)


def trace(
    pipeline: Any,
    setting: Calibration,
    number: int,
    component: str,
    layers: Sequence[str],
    on_step: Callable[[], None] = lambda: None,
) -> Trace:
    """Trajectory `number`, traced.

    It costs a call of the denoiser for every step and as much again to go back, and one more forward where the
    denoiser is large. Takes the memory of the layers' weights once more.
    """
    import torch

    denoiser = getattr(pipeline, component)
    large = sum(weight.numel() for weight in denoiser.parameters()) >= RECOMPUTED_FROM
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
                found[name] = gradient.detach().flatten(1).to(torch.bfloat16).cpu()
    return Trace(latents.detach()[0].float().cpu(), moments, found)


def scales(traces: Sequence[Trace]) -> list[float]:
    """What each trace is multiplied by, so that all have the same say.

    Some trajectories amplify every error a hundredfold; they would speak for all. So each is divided by the root
    of its gradients' energy, and all are multiplied by the root of their median.
    """
    energies = [sum(float(each.float().square().sum()) for each in trace.gradients.values()) for trace in traces]
    middle = median(energies)
    return [(middle / energy / len(traces)) ** 0.5 if energy > 0 else 0.0 for energy in energies]


def errors(
    weight: Tensor,
    treatments: Sequence[Treatment],
    gradients: Sequence[Tensor],
    known: Factor | None = None,
) -> dict[int, float]:
    """Mean squared change of the final latents' elements that each treatment of one layer makes, by its number.

    `weight`: (N, ...). `gradients`: (N, K) of each trace, scaled. `known`: of `factors`; without it by_gptq
    rounding is taken for rounding to the nearest. Treatments that do not fit the weight are left out. Wide layers
    are judged by some of their channels, evenly spaced.
    """
    import torch

    rows = _rows(weight)
    stack = torch.stack([each.float() for each in gradients])
    plain = stack.square().sum(0)
    shaped = plain
    if known:
        sharp = torch.stack([_whitened(each, known.blocks) for each in stack]).square().sum(0)
        shaped = sharp + known.doubt * (plain - sharp)
    found: dict[int, tuple[float, bool]] = {}
    ratios: dict[int, list[float]] = {}
    for number, off in residuals(treatments, weight, rows):
        rounding = getattr(treatments[number], "rounding", "round_to_nearest")
        by_gptq = known is not None and rounding == "gptq"
        found[number] = (_energy(shaped if by_gptq else plain, off, rows), by_gptq)
        if not by_gptq:
            ratios[number] = _ratios(stack[:, rows], off)
    pooled = _shrunk([ratio for each in ratios.values() for ratio in each], 1.0, MANY)
    return {
        number: energy if by_gptq else energy * _shrunk(ratios[number], pooled, FEW)
        for number, (energy, by_gptq) in found.items()
    }


def _whitened(gradient: Tensor, blocks: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """g L⁻ᵀ diag(L) of a gradient (N, K), in the order of its columns."""
    import torch

    found, first = torch.empty_like(gradient), 0
    for order, lower in blocks:
        part = gradient[:, first : first + len(order)][:, order]
        traced = torch.linalg.solve_triangular(lower, part.T, upper=False) * lower.diagonal()[:, None]
        found[:, first + order] = traced.T
        first += len(order)
    return found


def _energy(squares: Tensor, off: Tensor, rows: Tensor) -> float:
    """Σ g² E² over all channels, from the errors (n, K) of some."""
    from torch import float64

    seen = float(squares[rows].sum(dtype=float64))
    part = float((squares[rows] * off.square()).sum(dtype=float64))
    return part * float(squares.sum(dtype=float64)) / seen if seen > 0 else 0.0


def _ratios(stack: Tensor, off: Tensor) -> list[float]:
    """⟨g, E⟩² / Σ g² E² of each trace."""
    from torch import float64

    found = []
    for gradient in stack:
        product = gradient * off
        energy = float(product.square().sum(dtype=float64))
        if energy > 0:
            found.append(float(product.sum(dtype=float64)) ** 2 / energy)
    return found


def _shrunk(values: Sequence[float], prior: float, weight: int) -> float:
    """Their mean, with the prior counted `weight` times."""
    return (prior * weight + sum(values)) / (weight + len(values))


def _rows(weight: Tensor) -> Tensor:
    import torch

    count = min(max(SAMPLE // max(weight[0].numel(), 1), LEAST_ROWS), weight.shape[0])
    return torch.linspace(0, weight.shape[0] - 1, count).round().long()


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
