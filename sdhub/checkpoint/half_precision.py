"""Modules that keep their weights in 16 bits and compute in float32: the same numbers in half the memory."""

from __future__ import annotations

from typing import Any

from sdhub.checkpoint.checkpoint import Checkpoint

HALF = ("float16", "bfloat16")


def stored(checkpoint: Checkpoint) -> str | None:
    """The 16-bit type that the denoiser can stay in, nothing being fused; a single file's parts are loaded in one
    type."""
    part = checkpoint.component(checkpoint.family.denoiser)
    if part is None or part.dtype not in HALF or checkpoint.loras or checkpoint.source.single:
        return None
    return part.dtype


def compute_in_float32(module: Any) -> None:
    """Let a module of 16-bit weights compute in float32, on processors that are slow in 16 bits or cannot.

    Each linear layer, convolution and embedding is widened while it is called; all other parameters are float32.
    """
    import torch
    from diffusers.hooks import apply_layerwise_casting

    kept = (torch.nn.Linear, torch.nn.Embedding, torch.nn.modules.conv._ConvNd)
    stored = module.dtype
    for part in module.modules():
        if not isinstance(part, kept):
            for own in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                own.data = own.data.float() if own.is_floating_point() else own.data
    apply_layerwise_casting(module, stored, torch.float32, skip_modules_pattern=())
