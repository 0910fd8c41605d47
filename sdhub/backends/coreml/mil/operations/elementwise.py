"""Elementwise operations: arithmetic, comparison, casts, choice."""

from __future__ import annotations

import torch
from torch import Tensor

from sdhub.backends.coreml.mil.operations.registry import operation, register

DTYPES = {
    "bool": torch.bool,
    "fp16": torch.float32,  # rounded, where that is asked for, with every other result declared so
    "fp32": torch.float32,
    "fp64": torch.float64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int64,
    "uint64": torch.int64,
    "int4": torch.int8,
    "uint1": torch.uint8,
    "uint2": torch.uint8,
    "uint3": torch.uint8,
    "uint4": torch.uint8,
    "uint6": torch.uint8,
}

register(
    {
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "real_div": torch.true_divide,
        "pow": torch.pow,
        "maximum": torch.maximum,
        "equal": torch.eq,
        "not_equal": torch.ne,
        "greater": torch.gt,
        "greater_equal": torch.ge,
        "less": torch.lt,
        "less_equal": torch.le,
    },
    "x",
    "y",
)
register(
    {
        "cos": torch.cos,
        "exp2": torch.exp2,
        "identity": torch.clone,
        "sin": torch.sin,
        "sqrt": torch.sqrt,
        "square": torch.square,
        "tanh": torch.tanh,
    },
    "x",
)


@operation
def cast(x: Tensor, *, dtype: str) -> Tensor:
    """To another type, towards zero where that is an integer."""
    if dtype not in DTYPES:
        raise ValueError(f"a cast to {dtype}")
    return x.to(DTYPES[dtype])


@operation
def clip(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return x.clamp(alpha, beta)


@operation
def inverse(x: Tensor, *, epsilon: float = 1e-4) -> Tensor:
    return torch.reciprocal(x + epsilon)


@operation
def rsqrt(x: Tensor, *, epsilon: float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)


@operation
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond.to(torch.bool), a, b)
