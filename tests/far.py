"""A CUDA device that this machine lacks: numbers lie on the CPU, and tensors meet none of the CPU's.

What works with it works on any device; what would mix devices on a GPU raises as it does there. Nothing is said of
a GPU's own arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "Far 1"
aten = torch.ops.aten
# The first tensor may be elsewhere than the others: copies, and what is indexed by tensors of the CPU.
FREE = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class Far(torch.Tensor):
    """A tensor of the device `cuda:0`."""

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device="cuda:0",
        )

    def __init__(self, near: torch.Tensor) -> None:
        self.near = near

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    far = [each for each in tensors if isinstance(each, Far)]
    near = [each for each in tensors if not isinstance(each, Far) and each.ndim]
    goes = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    if far and near and function not in FREE and not (function in INDEXED and isinstance(args[0], Far)):
        raise RuntimeError(f"Expected all tensors to be on the same device: {function}")
    if goes is not None and goes.type == "cuda":
        kwargs = {**kwargs, "device": torch.device("cpu")}
        if function is aten._to_copy.default and not far:
            args = (args[0].clone(), *args[1:])
    elif function is aten._to_copy.default and goes is not None and far:
        args = (args[0].near.clone(), *args[1:])
    result_far = goes.type == "cuda" if goes is not None else bool(far)
    if function is aten.copy_.default:
        result_far = isinstance(args[0], Far)
    own = {id(each.near): each for each in far}
    plain_args, plain_kwargs = tree_map(lambda each: each.near if isinstance(each, Far) else each, (args, kwargs))
    found = function(*plain_args, **plain_kwargs)
    if not result_far:
        return found

    def wrapped(each: Any) -> Any:
        if not isinstance(each, torch.Tensor):
            return each
        return own[id(each)] if id(each) in own else Far(each)

    return tree_map(wrapped, found)


@contextmanager
def far_device(*, free: int = 2**40) -> Iterator[None]:
    """A machine with one CUDA GPU of `free` bytes, for the block and this thread."""
    torch._C._ensureCUDADeviceGuardSet()
    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: NAME,
        "get_device_capability": lambda *_: (8, 0),
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda *_: (free, 2 * free),
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
    }
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` of numbers asks no driver
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # parameters become tensors of this class
    try:
        with mock.patch.multiple("torch.cuda", **cuda), _Mode():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        torch._C._set_only_lift_cpu_tensors(False)
