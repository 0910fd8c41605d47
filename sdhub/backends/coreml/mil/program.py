"""One function of an ML program, checked: which operation takes what from which.

Source: `Function`, `Block` and `Operation` of MIL.proto. Programs are flat here: an operation with blocks of its
own (`cond`, `while_loop`) is refused, and so is state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdhub.backends.coreml.mil.decompression import DECOMPRESSIONS
from sdhub.backends.coreml.mil.files import PackageFiles
from sdhub.backends.coreml.mil.types import TensorType, tensor_type
from sdhub.backends.coreml.mil.values import Constant, constant, decompressed
from sdhub.core.errors import BuildError

Argument = Constant | str  # a constant, or the name of what another operation gives


@dataclass(frozen=True)
class Output:
    name: str
    type: TensorType


@dataclass(frozen=True)
class Operation:
    """One operation: `arguments` by parameter, several where the parameter is a tuple."""

    kind: str
    arguments: Mapping[str, tuple[Argument, ...]]
    outputs: tuple[Output, ...]

    def __str__(self) -> str:
        return f"operation {self.kind} of {', '.join(repr(output.name) for output in self.outputs) or 'nothing'}"


@dataclass(frozen=True)
class Program:
    """Inputs by name, operations in order of execution, and what is given back under which name."""

    inputs: Mapping[str, TensorType]
    operations: tuple[Operation, ...]
    outputs: Mapping[str, Argument]
    types: Mapping[str, TensorType]


def read_program(message: Any, function: str, files: PackageFiles) -> Program:
    """The function `function` of a `Program` message, its constants bound to the weight files of the package.

    Raises BuildError where it is not there, or a value is used before it is there, named twice, or broken.
    """
    if function not in message.functions:
        raise BuildError(f"{files.specification} has no function {function!r}")
    body = message.functions[function]
    if body.opset not in body.block_specializations:
        raise BuildError(f"{files.specification}: function {function} has no block for its opset {body.opset!r}")
    reader = _Reader(files)
    inputs = {each.name: tensor_type(each.type, f"input {each.name!r}") for each in body.inputs}
    for name, of in inputs.items():
        reader.define(name, of)
    block = body.block_specializations[body.opset]
    for operation in block.operations:
        reader.add(operation)
    files.check()
    outputs = {name: reader.argument(name, "the outputs") for name in block.outputs}
    return Program(inputs, tuple(reader.operations), outputs, reader.types)


class _Reader:
    """Goes through the operations of a block in order."""

    def __init__(self, files: PackageFiles) -> None:
        self.files = files
        self.operations: list[Operation] = []
        self.types: dict[str, TensorType] = {}
        self._constants: dict[str, Constant] = {}

    def define(self, name: str, of: TensorType) -> None:
        if name in self.types:
            raise BuildError(f"{self.files.specification}: {name!r} is defined twice")
        self.types[name] = of

    def argument(self, name: str, by: str) -> Argument:
        if name not in self.types:
            raise BuildError(f"{self.files.specification}: {by} uses {name!r}, which is not there")
        return self._constants.get(name, name)

    def add(self, message: Any) -> None:
        outputs = tuple(
            Output(each.name, tensor_type(each.type, f"{each.name!r} of operation {message.type}"))
            for each in message.outputs
        )
        operation = Operation(message.type, {}, outputs)
        if len(message.blocks):
            raise BuildError(f"{self.files.specification}: {operation} is control flow, which is not supported")
        arguments = self._arguments(message, operation)
        for output in outputs:
            self.define(output.name, output.type)
        if message.type == "const" or message.type.startswith("constexpr_"):
            self._add_constants(Operation(message.type, arguments, outputs))
        else:
            self.operations.append(Operation(message.type, arguments, outputs))

    def _arguments(self, message: Any, operation: Operation) -> dict[str, tuple[Argument, ...]]:
        arguments: dict[str, tuple[Argument, ...]] = {
            name: (self._written(value, operation, name),)
            for name, value in message.attributes.items()
            if name != "name"
        }
        for name, argument in message.inputs.items():
            arguments[name] = tuple(
                self._written(binding.value, operation, name)
                if binding.WhichOneof("binding") == "value"
                else self.argument(binding.name, str(operation))
                for binding in argument.arguments
            )
        return arguments

    def _written(self, value: Any, operation: Operation, parameter: str) -> Constant:
        name = operation.outputs[0].name if operation.outputs else operation.kind
        return constant(name if parameter == "val" else f"{name}.{parameter}", value, self.files)

    def _add_constants(self, operation: Operation) -> None:
        for each in self._constants_of(operation):
            self._constants[each.name] = each

    def _constants_of(self, operation: Operation) -> list[Constant]:
        parameters: dict[str, Constant] = {}
        for name, arguments in operation.arguments.items():
            if len(arguments) != 1 or not isinstance(arguments[0], Constant):
                raise BuildError(f"{self.files.specification}: {operation} needs one constant as {name!r}")
            parameters[name] = arguments[0]
        outputs = [(output.name, output.type) for output in operation.outputs]
        if operation.kind == "const":
            return [self._plain(operation, parameters)]
        function = DECOMPRESSIONS.get(operation.kind)
        if function is None:
            raise BuildError(f"{self.files.specification}: {operation} is not known")
        return decompressed(outputs, function, parameters)

    def _plain(self, operation: Operation, parameters: Mapping[str, Constant]) -> Constant:
        if len(operation.outputs) != 1 or set(parameters) != {"val"}:
            raise BuildError(f"{self.files.specification}: {operation} needs one value and one output")
        value, (output,) = parameters["val"], operation.outputs
        if value.type != output.type:
            raise BuildError(
                f"{self.files.specification}: constant {output.name!r} is {value.type}, not {output.type}"
            )
        return value
