"""What a denoiser makes of its layers' outputs: Gram matrices of gradients, by random probes.

With G = Σ ggᵀ over gradients g of vᵀy, for random v, at a layer's output vectors, an error e of such a vector
changes the denoiser's result y by about eᵀGe. G ⊗ H, with the Gram matrix H of the layer's inputs, is the
Kronecker-factored Gauss-Newton matrix of the layer's weight (Martens and Grosse 2015).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdhub.errors import UsageError

Call = tuple[Sequence[Any], Mapping[str, Any]]


def output_grams(
    denoiser: nn.Module, calls: Sequence[Call], layers: Collection[str], *, probes: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """G (N, N) float32 of each of `layers`, Linear or Conv2d of N output channels, over `calls` of the denoiser.

    `calls`: positional and named arguments. Each is run forward once and back `probes` times. Parameters get no
    gradients. Raises UsageError for a layer that is neither.
    """
    generator = torch.Generator().manual_seed(seed)
    outputs: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    handles = [denoiser.get_submodule(name).register_forward_hook(_keep(outputs, name)) for name in layers]
    try:
        for name in layers:
            layer = denoiser.get_submodule(name)
            if not isinstance(layer, (nn.Linear, nn.Conv2d)):
                raise UsageError(f"{name} is no Linear or Conv2d")
            found[name] = torch.zeros(layer.weight.shape[0], layer.weight.shape[0])
        for args, kwargs in calls:
            with torch.enable_grad():
                result = _result(denoiser(*args, **kwargs))
            for probe in range(probes):
                direction = torch.randn(result.shape, generator=generator).to(result)
                kept = probe + 1 < probes
                gradients = torch.autograd.grad(result, list(outputs.values()), direction, retain_graph=kept)
                for name, gradient in zip(outputs, gradients, strict=True):
                    rows = _rows(denoiser.get_submodule(name), gradient)
                    found[name].addmm_(rows.T, rows)
            outputs.clear()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _keep(outputs: dict[str, Tensor], name: str) -> Any:
    """The first layer needs a leaf of its own: nothing before it asks for gradients."""

    def after(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        outputs[name] = output if output.requires_grad else output.detach().requires_grad_(True)
        return outputs[name]

    return after


def _rows(layer: nn.Module, gradient: Tensor) -> Tensor:
    vectors = gradient.movedim(1, -1) if isinstance(layer, nn.Conv2d) else gradient
    return vectors.reshape(-1, vectors.shape[-1]).float().cpu()


def _result(found: Any) -> Tensor:
    result: Tensor = found if isinstance(found, Tensor) else found[0]
    return result
