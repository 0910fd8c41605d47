"""What rounding each layer of a denoiser costs its output, all layers in one pass.

To first order an error e of a layer's output moves the denoiser's output by J e. The expected ‖J e‖² of a random
sign vector v is that of (vᵀJ e)², and vᵀJ is what one backward pass brings to every layer at once (Hutchinson's
estimator). e itself is computed where the layer runs: from its true inputs, rounded as they will be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdhub.backends.openvino.calls import SIDE, latents_of, run
from sdhub.core.progress import SILENT, Progress
from sdhub.recipes.recipe import Affine

if TYPE_CHECKING:
    import torch

    from sdhub.compression.calibration import LayerStatistics


@dataclass(frozen=True)
class Cost:
    """Of one layer: `error`, its share of the output's squared error relative to the output; `multiplications` of
    one call; `weights`."""

    error: float
    multiplications: int
    weights: int


def sensitivities(
    denoiser: Any,
    calls: Iterable[Mapping[str, torch.Tensor]],
    treatments: Mapping[str, Affine],
    statistics: Mapping[str, LayerStatistics],
    *,
    side: int = SIDE,
    seed: int = 0,
    progress: Progress = SILENT,
) -> dict[str, Cost]:
    """The cost of every layer in `treatments` as on `calls`, weights rounded to the nearest.

    `statistics`: of the inputs of layers whose activations are rounded. Latents are cropped to `side` x `side`
    positions: backward passes keep all that lies between. The denoiser is run, and backwards, once
    for each call. Deterministic for the same number of threads.
    """
    import torch

    modules = {name: denoiser.get_submodule(name) for name in treatments}
    device = next(denoiser.parameters()).device
    kept = [{name: each.to(device) for name, each in _cropped(call, side).items()} for call in calls]
    with progress.task("measuring sensitivity", total=len(kept), unit="calls") as task:
        rounded = {name: _rounding(modules[name], each, statistics.get(name)) for name, each in treatments.items()}
        errors, work = dict.fromkeys(modules, 0.0), dict.fromkeys(modules, 0)
        signal = 0.0
        trainable = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        denoiser.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        try:
            with (
                torch.enable_grad(),
                _hooks(modules, lambda name: _project(name, rounded[name], errors, work)),
            ):
                for call in kept:
                    signal += _backward(denoiser, call, generator)
                    task.advance()
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
    return {
        name: Cost(errors[name] / max(signal, 1e-30), work[name], module.weight.numel())
        for name, module in modules.items()
    }


def most_sensitive(costs: Mapping[str, Cost], share: float, *, by: Callable[[Cost], int]) -> frozenset[str]:
    """Layers with the most error for what they are (`by`), as many as fit into `share` of all that."""
    budget = share * sum(by(cost) for cost in costs.values())
    chosen = set()
    for name in sorted(costs, key=lambda name: (-costs[name].error / max(by(costs[name]), 1), name)):
        if by(costs[name]) <= budget:
            chosen.add(name)
            budget -= by(costs[name])
    return frozenset(chosen)


def _cropped(call: Mapping[str, torch.Tensor], side: int) -> dict[str, torch.Tensor]:
    """A corner of latents laid out as an image, the first of those that are packed into tokens."""
    name = latents_of(call)
    latents = call[name]
    if latents.ndim == 4:
        return {**call, name: latents[..., :side, :side].contiguous()}
    tokens = side**2 // 4  # of 2 x 2 positions
    cropped = {**call, name: latents[:, :tokens].contiguous()}
    if "img_ids" in call:
        cropped["img_ids"] = call["img_ids"][:tokens].contiguous()
    return cropped


def _hooks(modules: Mapping[str, Any], hook: Callable[[str], Any]) -> Any:
    from contextlib import ExitStack

    stack = ExitStack()
    for name, module in modules.items():
        stack.callback(module.register_forward_hook(hook(name)).remove)
    return stack


def _rounding(
    module: Any, treatment: Affine, observed: LayerStatistics | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What rounding makes of the layer's output: a function from its inputs to the error."""
    import torch

    from sdhub.backends.openvino.integers import LEVELS, WEIGHT_BITS, factors_of, grid_of
    from sdhub.compression.affine import quantize

    weight = module.weight.detach()
    linear = isinstance(module, torch.nn.Linear)
    rounds_inputs = treatment.activations == "int8" or (treatment.activations == "hybrid" and not linear)
    factors = None
    if rounds_inputs:
        assert observed is not None
        if treatment.smoothing and linear:
            factors = factors_of(observed, [weight], treatment.smoothing)
        step, zero = grid_of(observed, factors)
    group = (
        treatment.group_size if treatment.group_size and weight[0].numel() % treatment.group_size == 0 else None
    )
    bits, symmetric = (WEIGHT_BITS, True) if rounds_inputs else (treatment.bits, treatment.symmetric)

    def apply(given: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if linear:
            return torch.nn.functional.linear(given, weight)
        made: torch.Tensor = module._conv_forward(given, weight, None)
        return made

    def error(given: torch.Tensor) -> torch.Tensor:
        # Made anew each time: to keep what becomes of all layers' weights would take as much memory once more.
        moving = weight if factors is None else weight * factors
        off = quantize(moving, bits, symmetric=symmetric, group_size=group).dequantize() - moving
        smooth = given if factors is None else given / factors
        moved = apply(smooth, off)
        if rounds_inputs:
            rounded = ((smooth / step + zero).round().clamp(0, LEVELS - 1) - zero) * step
            moved = moved + apply(rounded - smooth, moving)
        return moved

    return error


def _project(
    name: str,
    rounding: Callable[[torch.Tensor], torch.Tensor],
    errors: dict[str, float],
    work: dict[str, int],
) -> Any:
    import torch

    def after(module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        given = inputs[0].detach()
        work[name] = max(work[name], output.numel() * module.weight[0].numel())

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
    output.backward(signs.to(output.device))
    return float(output.detach().square().sum())
