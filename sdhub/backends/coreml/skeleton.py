"""An ML program without its weights: traced without computing anything, converted without touching a large tensor.

coremltools' converter copies, compares and casts every weight in many of its passes, which is most of its time and
memory. Here large weights go through it as placeholders that it does not look into, and are put in their places
when the package is written (`constants.py`):

1. The module is traced on torch's meta device, which knows shapes only. Parameters come from an operator of our
   own, `sdhub_coreml::weight`, by number.
2. coremltools' frontend is told what that operator means, with its own means for that (composite operators): small
   tensors become constants, large ones a `constexpr_lut_to_dense` of a few zeros, of the right type and shape. The
   passes leave such operations alone, as they do with weights that were compressed before.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from sdhub.core.errors import BuildError

SMALL = 4096  # numbers in a tensor that goes through the converter as it is
MARK = "sdhub_weight"
MARKED = re.compile(rf"{MARK}_(\d+)_")
NAMESPACE = "sdhub_coreml"


@dataclass(frozen=True)
class Weight:
    """A tensor of the module, by its first name; a `placeholder` for it stands in the skeleton, or it itself."""

    name: str
    tensor: Tensor
    placeholder: bool


class Weights:
    """All floating-point parameters and buffers of a module, in order; shared ones once."""

    def __init__(self, module: nn.Module, large: frozenset[str] = frozenset()) -> None:
        """`large`: parameters that get a placeholder however small they are."""
        self.module = module
        self.all: list[Weight] = []
        self.numbers: dict[str, int] = {}
        known: dict[int, int] = {}
        for name, tensor in _tensors(module):
            number = known.setdefault(id(tensor), len(self.all))
            if number == len(self.all):
                wide = tensor.numel() > SMALL or name in large or tensor.is_meta
                placeholder = tensor.ndim > 1 and wide
                self.all.append(Weight(name, tensor, placeholder))
            self.numbers[name] = number

    def count(self, constant: str) -> int:
        """How many numbers the weight has whose placeholder is called `constant`; other constants are small: 0."""
        number = number_of(constant)
        return 0 if number is None else self.all[number].tensor.numel()

    @contextmanager
    def replaced(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """For a while the module holds `tensors` instead, one for each weight."""
        slots = []
        for name, number in self.numbers.items():
            path, _, leaf = name.rpartition(".")
            owner = self.module.get_submodule(path)
            store = owner._parameters if leaf in owner._parameters else owner._buffers
            slots.append((store, leaf, store[leaf], tensors[number]))
        try:
            for store, leaf, _, tensor in slots:
                store[leaf] = tensor
            yield
        finally:
            for store, leaf, before, _ in slots:
                store[leaf] = before


def trace(weights: Weights, inputs: Sequence[tuple[int, ...]]) -> Any:
    """A TorchScript module that computes what the module of `weights` does from float32 inputs of these shapes."""
    _register()
    shapes = [list(each.tensor.shape) for each in weights.all]
    make = torch.ops.sdhub_coreml.weight

    class Skeleton(nn.Module):
        def forward(self, *given: Tensor) -> Any:
            with weights.replaced([make(number, shape) for number, shape in enumerate(shapes)]):
                return weights.module(*given)

    given = tuple(torch.empty(shape, device="meta") for shape in inputs)
    with torch.no_grad(), warnings.catch_warnings(), ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("ignore")  # of shapes that become plain numbers, which is what is wanted
        with _Untraced(pool), _Recorded():
            return torch.jit.trace(Skeleton().eval(), given, check_trace=False)


@contextmanager
def converting(weights: Weights) -> Iterator[None]:
    """Inside, coremltools' frontend converts traces of `weights`."""
    token = _current.set(weights)
    try:
        yield
    finally:
        _current.reset(token)


def number_of(name: str) -> int | None:
    """The number of the weight whose placeholder is called `name` in a converted program."""
    found = MARKED.search(name)
    return int(found.group(1)) if found else None


_current: ContextVar[Weights] = ContextVar("weights")


class _Untraced(TorchDispatchMode):
    """Computes shapes in another thread: where the tracer looks on, the numbers of a shape are tensors, which many
    of torch's meta functions cannot take.
    """

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        super().__init__()
        self.pool = pool

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._convolution.default:
            func, args = torch.ops.aten.convolution.default, args[:9]
        found = self.pool.submit(func, *args, **(kwargs or {})).result()
        return tree_map_only(
            Tensor, lambda each: each if any(each is one for one in args) else _fresh(each), found
        )


def _fresh(tensor: Tensor) -> Tensor:
    """Views that another thread made would be bound to their bases; numbers of shapes have to keep their value."""
    if not tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


class _Recorded(TorchFunctionMode):
    """Calls convolutions by the name under which the tracer records them: under a dispatch mode it misses them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not torch.conv2d:
            return func(*args, **(kwargs or {}))
        return _conv2d(*args, **(kwargs or {}))


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str):
        raise BuildError(f"a convolution with padding {padding!r} cannot be converted")
    stride, padding, dilation = (
        (each, each) if isinstance(each, int) else each for each in (stride, padding, dilation)
    )
    return torch._convolution(
        x, weight, bias, stride, padding, dilation, False, (0, 0), groups, False, False, True, True
    )


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        if buffer.is_floating_point():
            yield name, buffer


@functools.cache
def _register() -> None:
    """Make the operator known to torch and to coremltools, once in a process."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op

    library = torch.library.Library(NAMESPACE, "DEF")
    library.define("weight(int number, int[] shape) -> Tensor")
    library.impl("weight", _empty, "CompositeExplicitAutograd")
    _kept.append(library)
    register_torch_op(torch_alias=[f"{NAMESPACE}::weight"])(sdhub_coreml_weight)


_kept: list[Any] = []  # a library that is dropped takes its operators along


def _empty(number: int, shape: list[int]) -> Tensor:
    return torch.empty(shape, device="meta")


def sdhub_coreml_weight(context: Any, node: Any) -> None:
    """The operator in MIL; coremltools registers it by this name as well."""
    from coremltools.converters.mil.mil import Builder as mb

    number = int(context[node.inputs[0]].val)
    weight = _current.get().all[number]
    name = weight.name.replace(".", "_")
    if weight.placeholder:
        found = _placeholder(number, weight, f"{MARK}_{number}_{name}")
    else:
        found = mb.const(val=weight.tensor.detach().float().numpy(), name=name)
    context.add(found, torch_name=node.name)


def _placeholder(number: int, weight: Weight, name: str) -> Any:
    """A table of two numbers that no other placeholder has, so that none are taken for the same, and zeros."""
    from coremltools.converters.mil._deployment_compatibility import AvailableTarget
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types
    from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with

    shape = tuple(weight.tensor.shape)
    table = np.array(divmod(number, 1000), np.float32)
    if not is_current_opset_version_compatible_with(AvailableTarget.iOS18):
        indices = np.broadcast_to(np.uint8(0), (-(-weight.tensor.numel() // 8),))
        return mb.constexpr_lut_to_dense(indices=indices, lut=table, shape=np.array(shape, np.uint32), name=name)
    # A vector for the whole first axis keeps the indices few.
    rank = [1] * len(shape)
    vectors = np.repeat(table.reshape(*rank, 2, 1), shape[0], axis=-1)
    indices = np.zeros((1, *shape[1:]), dtype=types.np_uint1_dtype)
    return mb.constexpr_lut_to_dense(indices=indices, lut=vectors, vector_axis=0, name=name)
