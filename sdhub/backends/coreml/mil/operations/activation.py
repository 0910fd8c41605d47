"""Activations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sdhub.backends.coreml.mil.operations.registry import operation, register

register(
    {
        "relu": torch.relu,
        "relu6": F.relu6,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "softplus": F.softplus,
        "softsign": F.softsign,
    },
    "x",
)


@operation
def clamped_relu(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return F.leaky_relu(x, alpha).clamp(max=beta)


@operation
def elu(x: Tensor, *, alpha: float) -> Tensor:
    return F.elu(x, alpha)


@operation
def gelu(x: Tensor, *, mode: str = "EXACT") -> Tensor:
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"gelu of mode {mode}")


@operation
def leaky_relu(x: Tensor, *, alpha: float) -> Tensor:
    return F.leaky_relu(x, alpha)


@operation
def linear_activation(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return x * alpha + beta


@operation
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return F.prelu(x, alpha)


@operation
def scaled_tanh(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return alpha * torch.tanh(x * beta)


@operation
def sigmoid_hard(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return (x * alpha + beta).clamp(0, 1)


@operation
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@operation
def thresholded_relu(x: Tensor, *, alpha: float) -> Tensor:
    return torch.where(x >= alpha, x, torch.zeros_like(x))
