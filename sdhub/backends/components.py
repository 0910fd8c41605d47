"""A component written with some of its layers in a format of their own, layer after layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.backends.folder import prove_written, stem_of, write_config
from sdhub.backends.parts import Parts
from sdhub.core.progress import Progress
from sdhub.recipes.weights import MEMORY, workers_on

if TYPE_CHECKING:
    import torch

    from sdhub.compression.calibration import LayerStatistics

Encode = Callable[[str, "torch.nn.Module"], "tuple[dict[str, torch.Tensor], float]"]
Read = Callable[[str], "torch.Tensor"]


def write_component(
    module: Any,
    layers: Sequence[str],
    encode: Encode,
    folder: Path,
    *,
    quantization: Mapping[str, Any] | None,
    replaced: Collection[str],
    dtype: torch.dtype,
    statistics: Mapping[str, LayerStatistics],
    progress: Progress,
    read: Read | None = None,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Write the component's folder; returns the error of each of `layers`, as `encode` tells it.

    `encode(name, layer)` gives the tensors that stand for a layer, by their names in it, in the place of its
    `replaced` parameters; everything else is saved as `dtype`. `quantization` is its document in the config, None
    where there is none. A layer's weight is given up once it is written.
    With `read`, which gives a tensor by its name, the module is one on the meta device, and no more of it is in
    memory than what is worked on. With a `device` layers are encoded there, one after another, else several at a
    time where they are. Layers that an earlier call wrote before it was cut off are kept.
    """
    parts = Parts(folder / ".parts")
    errors = write_parts(
        parts,
        module,
        layers,
        encode,
        label=f"quantizing {folder.name}",
        replaced=replaced,
        dtype=dtype,
        statistics=statistics,
        progress=progress,
        read=read,
        device=device,
    )
    write_config(module, folder, quantization)
    parts.join(folder, stem_of(module), metadata={"format": "pt"})
    prove_written(
        module, folder, set(layers), replaced, lambda name: _kept(module, name, dtype, read), _again(module)
    )
    return errors


def write_parts(
    parts: Parts,
    module: Any,
    layers: Sequence[str],
    encode: Encode,
    *,
    label: str,
    replaced: Collection[str],
    dtype: torch.dtype,
    statistics: Mapping[str, LayerStatistics],
    progress: Progress,
    read: Read | None,
    device: torch.device | None = None,
) -> dict[str, float]:
    """As `write_component`, the tensors into `parts`, which are not joined yet."""
    import torch

    from sdhub.compression.layers import each_layer

    def work(name: str) -> tuple[dict[str, torch.Tensor], float]:
        layer = module.get_submodule(name)
        if read is not None:
            layer = _materialized(layer, name, read)
        tensors, error = encode(name, layer if device is None else _moved(layer, device))
        return {key: each.cpu() for key, each in tensors.items()}, error

    def cost(name: str) -> int:
        gram = statistics[name].gram if name in statistics else None
        widest = max((int(block.numel()) for block in gram or ()), default=0)
        return 4 * (8 * int(module.get_submodule(name).weight.numel()) + 6 * widest)

    waiting = [name for name in layers if not parts.has(name)]
    total = sum(module.get_submodule(name).weight.numel() for name in waiting) / 1e6
    with progress.task(label, total=total, unit="M weights") as task:
        for name, (tensors, error) in each_layer(
            waiting, work, cost=cost, memory=MEMORY, workers=workers_on(device)
        ):
            layer = module.get_submodule(name)
            task.advance(layer.weight.numel() / 1e6)
            parts.put(name, {f"{name}.{key}": each for key, each in tensors.items()}, {"error": f"{error:.3e}"})
            if read is None:
                layer.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    for name in _others(module, {f"{layer}.{key}" for layer in layers for key in replaced}):
        parts.put(f"/{name}", {name: _kept(module, name, dtype, read)})
    return {name: float(parts.notes(name)["error"]) for name in layers}


def tied(module: Any) -> set[str]:
    """Weights that stand under two names."""
    counts: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        counts.setdefault(id(parameter), []).append(name)
    return {name for names in counts.values() if len(names) > 1 for name in names}


def _materialized(layer: Any, name: str, read: Read) -> Any:
    """A linear layer or convolution with its weights."""
    import torch

    copied = torch.nn.Module()
    copied.weight = torch.nn.Parameter(read(f"{name}.weight"), requires_grad=False)
    copied.bias = None
    if layer.bias is not None:
        copied.bias = torch.nn.Parameter(read(f"{name}.bias"), requires_grad=False)
    return copied


def _moved(layer: Any, device: torch.device) -> Any:
    """A copy of a linear layer or convolution on a device."""
    import torch

    copied = torch.nn.Module()
    for name in ("weight", "bias"):
        own = getattr(layer, name)
        copied.register_parameter(name, None)
        if own is not None:
            setattr(copied, name, torch.nn.Parameter(own.detach().to(device), requires_grad=False))
    return copied


def _others(module: Any, replaced: set[str]) -> Iterator[str]:
    """Names of everything that is not replaced; of tied weights the first."""
    again = _again(module)
    for name in module.state_dict():
        if name not in replaced and name not in again:
            yield name


def _again(module: Any) -> set[str]:
    """The second names of tied weights."""
    first = {name for name, _ in module.named_parameters()}
    return {name for name, _ in module.named_parameters(remove_duplicate=False)} - first


def _kept(module: Any, name: str, dtype: torch.dtype, read: Read | None) -> torch.Tensor:
    """A tensor as it is saved."""
    tensor: torch.Tensor = module.state_dict()[name] if read is None else read(name)
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
