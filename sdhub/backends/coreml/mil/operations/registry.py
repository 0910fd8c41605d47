"""How operations are written down: a function per operation, found by its MIL name.

Parameters before the `*` of its signature are tensors of the run; those behind it are constants, bound once as
Python values when a program is loaded. Defaults are MIL's. Floating-point tensors come as float32 (or float64),
unsigned integers of 16 and more bits as the next wider signed type; what a function returns is cast to the type
that the program declares, so comparisons may return bool, indices int64.

Known are the operations of the packages there are:

- those that sdhub converts, of UNets, ControlNets, text encoders, VAEs and the safety checker: add, batch_norm,
  cast, concat, conv, cos, einsum, equal, expand_dims, gather, gather_nd, gelu, greater, layer_norm, linear,
  matmul, mul, pad, real_div, reduce_argmax, reduce_l2_norm, reduce_max, reduce_mean, reshape, sigmoid, silu, sin,
  slice_by_index, softmax, split, sqrt, square, stack, sub, transpose, upsample_nearest_neighbor;
- more in those that apple/ml-stable-diffusion makes with coremltools: clip and rsqrt of its layer norm; exp2,
  inverse and reduce_sum of its split softmax; softplus and tanh of Mish; maximum, select and tile of its safety
  checker; less, less_equal, greater_equal and not_equal of text encoders' masks; quantize and dequantize of 8-bit
  activations; pow, rsqrt and, from iOS 18 on, scaled_dot_product_attention of Stable Diffusion 3 and T5; squeeze,
  identity;
- relu, tanh and fill_like of tiny autoencoders.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

TUPLES = frozenset({"values"})  # parameters that are tuples in MIL


@dataclass(frozen=True)
class Definition:
    """One operation: its function, and whether a parameter is required, for tensors (in order) and constants."""

    function: Callable[..., Any]
    tensors: Mapping[str, bool]
    constants: Mapping[str, bool]


OPERATIONS: dict[str, Definition] = {}


def operation(function: Function) -> Function:
    """Register `function` as the operation of its own name, a trailing underscore left out."""
    parameters = inspect.signature(function).parameters.values()
    OPERATIONS[function.__name__.removesuffix("_")] = Definition(
        function,
        {each.name: each.default is each.empty for each in parameters if each.kind is not each.KEYWORD_ONLY},
        {each.name: each.default is each.empty for each in parameters if each.kind is each.KEYWORD_ONLY},
    )
    return function


def register(functions: Mapping[str, Callable[..., Any]], *tensors: str) -> None:
    """Register functions that take `tensors`, all of them required, and no constants."""
    for name, function in functions.items():
        OPERATIONS[name] = Definition(function, dict.fromkeys(tensors, True), {})
