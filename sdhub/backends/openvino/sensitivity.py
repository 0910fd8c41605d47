"""What rounding each layer of a denoiser costs its output, all layers in one pass.

To first order an error e of a layer's output moves the denoiser's output by J e. The expected ‖J e‖² of a random
sign vector v is that of (vᵀJ e)², and vᵀJ is what one backward pass brings to every layer at once (Hutchinson's
estimator). e itself is computed where the layer runs: from its true inputs, rounded as they will be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdhub.backends.openvino.calls import latents_of, run
from sdhub.progress import SILENT, Progress
from sdhub.recipes.recipe import Affine, Treatment

if TYPE_CHECKING:
    import torch

SIDE, TOKENS = 64, 1024  # latents are cropped to that: backward passes keep all that lies between


@dataclass(frozen=True)
class Cost:
    """Of one layer: `error`, its share of the output's squared error relative to the output; `multiplications` of
    one call; `weights`."""

    error: float
    multiplications: int
    weights: int


@dataclass
class _Seen:
    """The range of a layer's inputs, and of each input channel (None for convolutions)."""

    low: float = 0.0
    high: float = 0.0
    peaks: torch.Tensor | None = None
    multiplications: int = 0


def sensitivities(
    denoiser: Any,
    calls: Iterable[Mapping[str, torch.Tensor]],
    treatments: Mapping[str, Treatment],
    *,
    seed: int = 0,
    progress: Progress = SILENT,
) -> dict[str, Cost]:
    """The cost of every layer in `treatments` whose treatment is affine, rounded to the nearest, on `calls`.

    A denoiser of n calls is run 2 n times and backwards n times. Deterministic for the same number of threads.
    """
    import torch

    modules = {name: denoiser.get_submodule(name) for name, each in treatments.items() if isinstance(each, Affine)}
    kept = [_cropped(call) for call in calls]
    with progress.task("measuring sensitivity", total=2 * len(kept), unit="calls") as task:
        seen = {name: _Seen() for name in modules}
        with torch.no_grad(), _hooks(modules, lambda name: _watch(modules[name], seen[name])):
            for call in kept:
                run(denoiser, call)
                task.advance()
        rounded = {name: _rounding(modules[name], treatments[name], seen[name]) for name in modules}
        errors = dict.fromkeys(modules, 0.0)
        signal = 0.0
        trainable = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        denoiser.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        try:
            with (
                torch.enable_grad(),
                _hooks(modules, lambda name: _project(rounded[name], errors, name)),
            ):
                for call in kept:
                    signal += _backward(denoiser, call, generator)
                    task.advance()
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
    return {
        name: Cost(errors[name] / max(signal, 1e-30), seen[name].multiplications, module.weight.numel())
        for name, module in modules.items()
    }


def spare(costs: Mapping[str, Cost], share: float, *, by: Callable[[Cost], int]) -> frozenset[str]:
    """Layers with the most error for what they are (`by`), as many as fit into `share` of all that."""
    budget = share * sum(by(cost) for cost in costs.values())
    chosen = set()
    for name in sorted(costs, key=lambda name: (-costs[name].error / max(by(costs[name]), 1), name)):
        if by(costs[name]) <= budget:
            chosen.add(name)
            budget -= by(costs[name])
    return frozenset(chosen)


def _cropped(call: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A corner of latents laid out as an image, the first of those that are packed into tokens."""
    name = latents_of(call)
    latents = call[name]
    if latents.ndim == 4:
        return {**call, name: latents[..., :SIDE, :SIDE].contiguous()}
    cropped = {**call, name: latents[:, :TOKENS].contiguous()}
    if "img_ids" in call:
        cropped["img_ids"] = call["img_ids"][:TOKENS].contiguous()
    return cropped


def _hooks(modules: Mapping[str, Any], hook: Callable[[str], Any]) -> Any:
    from contextlib import ExitStack

    stack = ExitStack()
    for name, module in modules.items():
        stack.callback(module.register_forward_hook(hook(name)).remove)
    return stack


def _watch(module: Any, seen: _Seen) -> Any:
    import torch

    linear = isinstance(module, torch.nn.Linear)

    def after(_: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        (given,) = inputs[:1]
        seen.low, seen.high = min(seen.low, float(given.min())), max(seen.high, float(given.max()))
        columns = module.weight[0].numel()
        seen.multiplications = max(seen.multiplications, output.numel() * columns)
        if linear:
            peaks = given.reshape(-1, given.shape[-1]).abs().amax(dim=0)
            seen.peaks = peaks if seen.peaks is None else torch.maximum(seen.peaks, peaks)

    return after


def _rounding(module: Any, treatment: Treatment, seen: _Seen) -> Callable[[torch.Tensor], torch.Tensor]:
    """What rounding makes of the layer's output: a function from its inputs to the error."""
    import torch

    from sdhub.compression.affine import quantize
    from sdhub.compression.smoothing import smoothing_factors

    assert isinstance(treatment, Affine)
    weight = module.weight.detach()
    linear = isinstance(module, torch.nn.Linear)
    rounds_inputs = treatment.activations == "int8" or (treatment.activations == "hybrid" and not linear)
    factors = None
    if rounds_inputs and treatment.smoothing and seen.peaks is not None:
        alpha = treatment.smoothing
        factors = smoothing_factors(seen.peaks, weight.abs().amax(dim=0), alpha, 1 - alpha)
        weight = weight * factors
    group = (
        treatment.group_size if treatment.group_size and weight[0].numel() % treatment.group_size == 0 else None
    )
    symmetric = treatment.symmetric or rounds_inputs

    def apply(given: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if linear:
            return torch.nn.functional.linear(given, weight)
        made: torch.Tensor = module._conv_forward(given, weight, None)
        return made

    def error(given: torch.Tensor) -> torch.Tensor:
        # Codes are made anew each time: to keep those of all layers would take another copy of the weights.
        off = quantize(weight, treatment.bits, symmetric=symmetric, group_size=group).dequantize() - weight
        smooth = given if factors is None else given / factors
        moved = apply(smooth, off)
        if rounds_inputs:
            least, most = (seen.low, seen.high) if factors is None else _range_of(seen, factors)
            moved = moved + apply(_rounded(smooth, least, most) - smooth, weight)
        return moved

    return error


def _range_of(seen: _Seen, factors: torch.Tensor) -> tuple[float, float]:
    assert seen.peaks is not None
    most = float((seen.peaks / factors).max())
    return -most, most


def _rounded(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    scale = max(high - low, 1e-12) / 255
    zero = round(-low / scale)
    return ((values / scale + zero).round().clamp(0, 255) - zero) * scale


def _project(rounding: Callable[[torch.Tensor], torch.Tensor], errors: dict[str, float], name: str) -> Any:
    import torch

    def after(_: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        given = inputs[0].detach()

        def arrives(gradient: torch.Tensor) -> None:
            with torch.no_grad():
                errors[name] += float((gradient * rounding(given)).sum()) ** 2

        # What depends on the timestep alone has no gradient yet.
        made = output if output.requires_grad else output.detach().requires_grad_()
        made.register_hook(arrives)
        return made

    return after


def _backward(denoiser: Any, call: Mapping[str, torch.Tensor], generator: torch.Generator) -> float:
    """Send random signs back through the denoiser; the output's squared norm."""
    import torch

    name = latents_of(call)
    output = run(denoiser, {**call, name: call[name].clone().requires_grad_()})
    signs = torch.randint(0, 2, output.shape, generator=generator, dtype=torch.float32) * 2 - 1
    output.backward(signs)
    return float(output.detach().square().sum())
