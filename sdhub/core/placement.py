"""A diffusers pipeline on a device: whole where its memory holds it, else by diffusers' own offloading."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sdhub.core.device import CPU, empty_cache, free_bytes, of_pipeline

if TYPE_CHECKING:
    import torch

ROOM = 0.75  # of what is free, for weights; the rest is for what they compute


def place(pipe: Any, device: torch.device) -> Any:
    """`pipe`, so that it computes on `device`; on the CPU it is left as it is.

    Where the whole does not fit, component after component is moved there for its calls
    (`enable_model_cpu_offload`), and where the largest does not, layer after layer
    (`enable_sequential_cpu_offload`).
    """
    if device.type == CPU:
        return pipe
    modules = _modules(pipe)
    if holds(device, modules):
        return pipe.to(device)
    if all(holds(device, [module]) for module in modules):
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)
    return pipe


def take_home(pipe: Any) -> torch.device:
    """Put all weights of a pipeline on the CPU, where they can be changed and saved; where it computed before."""
    device = of_pipeline(pipe)
    if device.type != CPU:
        pipe.remove_all_hooks()
        pipe.to(CPU)
        empty_cache(device)
    return device


@contextmanager
def visiting(module: Any, device: torch.device) -> Iterator[None]:
    """A module of the CPU on `device` for the block, where it fits there three times (for passes backwards)."""
    there = device.type != CPU and holds(device, [module], times=3)
    if there:
        module.to(device)
    try:
        yield
    finally:
        if there:
            module.to(CPU)
            empty_cache(device)


def holds(device: torch.device, modules: Iterable[Any], *, times: int = 1) -> bool:
    """Whether a device's free memory holds the weights of all `modules`, so many `times`."""
    free = free_bytes(device)
    return free is None or times * sum(map(_bytes, modules)) <= ROOM * free


def _bytes(module: Any) -> int:
    return sum(each.numel() * each.element_size() for each in (*module.parameters(), *module.buffers()))


def _modules(pipe: Any) -> list[Any]:
    from torch import nn

    return [each for each in pipe.components.values() if isinstance(each, nn.Module)]
