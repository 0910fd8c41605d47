"""A program bound to torch, run operation by operation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdhub.backends.coreml.mil.operations import OPERATIONS, TUPLES, Definition
from sdhub.backends.coreml.mil.operations.elementwise import DTYPES
from sdhub.backends.coreml.mil.program import Argument, Operation, Program
from sdhub.backends.coreml.mil.types import TensorType
from sdhub.backends.coreml.mil.values import Constant
from sdhub.core.errors import BuildError

SMALL_BYTES = 2**16  # constants up to this size are always kept
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, KeyError, OverflowError, ZeroDivisionError)

Slot = int | Constant | tuple["Slot", ...] | None  # the number of a value, a constant, several, or nothing


class _Result(NamedTuple):
    slot: int | None  # None where nothing takes it
    type: TensorType
    dtype: torch.dtype
    rounded: bool


class _Step(NamedTuple):
    operation: Operation
    function: Callable[..., Any]
    arguments: tuple[Slot, ...]
    results: tuple[_Result, ...]
    done_with: tuple[int, ...]


class Machine:
    """Runs one program.

    Floating-point values are kept as float32. With `rounding`, each result that the program declares fp16 is
    rounded to fp16 (arithmetic inside one operation stays float32); without, only what the package stores is of 16
    bits. Constants become tensors when they are first needed and are kept while they take at most `cache_bytes`
    together; the others are read, and decompressed, at each use. A value is freed behind the last operation that
    takes it.

    Raises BuildError, naming operation and output, where one is unknown, or misses a parameter, or has one that it
    does not know, or that has to be a constant.
    """

    def __init__(self, program: Program, *, rounding: bool, cache_bytes: int) -> None:
        self._program = program
        self._rounding = rounding
        self._cache = _Cache(cache_bytes)
        self._numbers = {name: number for number, name in enumerate(program.types)}
        last = self._last_uses()
        self._steps = [self._step(index, each, last) for index, each in enumerate(program.operations)]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, for inputs by name, whose shapes and types are right.

        Raises BuildError, naming the operation, where one cannot be computed or gives what the program does not
        declare.
        """
        values: list[Tensor | None] = [None] * len(self._numbers)
        for name, of in self._program.inputs.items():
            values[self._numbers[name]] = inputs[name].to(DTYPES[of.scalar.name])
        with torch.no_grad():
            for step in self._steps:
                self._execute(step, values)
            return {name: self._output(argument, values) for name, argument in self._program.outputs.items()}

    def _execute(self, step: _Step, values: list[Tensor | None]) -> None:
        try:
            given = step.function(*[self._fetch(argument, values) for argument in step.arguments])
        except _FAILURES as error:
            raise BuildError(f"{step.operation} cannot be computed: {_line(error)}") from None
        for slot in step.done_with:
            values[slot] = None
        tensors = given if isinstance(given, tuple | list) else (given,)
        if len(tensors) != len(step.results):
            raise BuildError(f"{step.operation} gives {len(tensors)} values")
        for tensor, result in zip(tensors, step.results, strict=True):
            if not result.type.holds(tuple(tensor.shape)):
                raise BuildError(f"{step.operation} gives shape {list(tensor.shape)}, declared {result.type}")
            if result.slot is None:
                continue
            if result.rounded:
                tensor = tensor.half()
            values[result.slot] = tensor if tensor.dtype == result.dtype else tensor.to(result.dtype)

    def _fetch(self, slot: Slot, values: Sequence[Tensor | None]) -> Any:
        if isinstance(slot, int):
            return values[slot]
        if isinstance(slot, Constant):
            return self._cache.tensor(slot)
        return None if slot is None else [self._fetch(each, values) for each in slot]

    def _output(self, argument: Argument, values: Sequence[Tensor | None]) -> Tensor:
        tensor = self._fetch(argument if isinstance(argument, Constant) else self._numbers[argument], values)
        return torch.clone(tensor)

    def _last_uses(self) -> dict[str, int]:
        last: dict[str, int] = {}
        for index, operation in enumerate(self._program.operations):
            used = [each for several in operation.arguments.values() for each in several]
            last.update({name: index for name in used if isinstance(name, str)})
        return last

    def _step(self, index: int, operation: Operation, last: Mapping[str, int]) -> _Step:
        definition = OPERATIONS.get(operation.kind)
        if definition is None:
            raise BuildError(f"{operation} is not known")
        _check_parameters(operation, definition)
        keep = set(self._program.outputs)
        used = {name for several in operation.arguments.values() for name in several if isinstance(name, str)}
        results = tuple(
            _Result(
                self._numbers[output.name] if output.name in last or output.name in keep else None,
                output.type,
                _dtype(operation, output.type),
                self._rounding and output.type.scalar.name == "fp16",
            )
            for output in operation.outputs
        )
        return _Step(
            operation,
            _bound(operation, definition),
            tuple(self._slot(operation, name) for name in definition.tensors),
            results,
            tuple(self._numbers[name] for name in used if last[name] == index and name not in keep),
        )

    def _slot(self, operation: Operation, parameter: str) -> Slot:
        if parameter not in operation.arguments:
            return None
        slots = tuple(
            each if isinstance(each, Constant) else self._numbers[each] for each in operation.arguments[parameter]
        )
        if parameter in TUPLES:
            return slots
        if len(slots) != 1:
            raise BuildError(f"{operation} has {len(slots)} values as {parameter!r}")
        return slots[0]


class _Cache:
    """Constants as tensors, those that came first kept while they fit."""

    def __init__(self, budget: int) -> None:
        self._left = budget
        self._tensors: dict[Constant, Tensor] = {}

    def tensor(self, constant: Constant) -> Tensor:
        known = self._tensors.get(constant)
        if known is not None:
            return known
        tensor = _tensor(constant)
        size = tensor.numel() * tensor.element_size()
        if size <= SMALL_BYTES or size <= self._left:
            self._left -= size
            self._tensors[constant] = tensor
        return tensor


def _tensor(constant: Constant) -> Tensor:
    array = constant.array()
    if array.dtype == np.uint16 or array.dtype == np.uint32 or array.dtype == np.uint64:
        array = array.astype(np.int64)
    if not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array).to(DTYPES[constant.type.scalar.name])


def _bound(operation: Operation, definition: Definition) -> Callable[..., Any]:
    constants: dict[str, Any] = {}
    for name in definition.constants:
        if name not in operation.arguments:
            continue
        values = [each.python() if isinstance(each, Constant) else None for each in operation.arguments[name]]
        constants[name] = values if name in TUPLES else values[0]
    return functools.partial(definition.function, **constants) if constants else definition.function


def _check_parameters(operation: Operation, definition: Definition) -> None:
    required = {**definition.tensors, **definition.constants}
    for name, arguments in operation.arguments.items():
        if name not in required:
            raise BuildError(f"{operation} has a parameter {name!r}, which is not known")
        if not arguments or (len(arguments) > 1 and name not in TUPLES):
            raise BuildError(f"{operation} has {len(arguments)} values as {name!r}")
        if name in definition.constants and not all(isinstance(each, Constant) for each in arguments):
            raise BuildError(f"{operation} has a parameter {name!r} that is no constant")
    for name, needed in required.items():
        if needed and name not in operation.arguments:
            raise BuildError(f"{operation} lacks its parameter {name!r}")


def _dtype(operation: Operation, of: TensorType) -> torch.dtype:
    dtype = DTYPES.get(of.scalar.name)
    if dtype is None:
        raise BuildError(f"{operation} gives {of}, which is not supported")
    return dtype


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
