"""The program inside a Model message (MIL.proto of Core ML's model format): one function, one block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def operations(model: Any) -> Sequence[Any]:
    """All operations, in the order in which they run."""
    found: Sequence[Any] = block_of(model).operations
    return found


def block_of(model: Any) -> Any:
    """The block of the function `main`."""
    main = model.mlProgram.functions["main"]
    return main.block_specializations[main.opset]


def is_constant(operation: Any) -> bool:
    """Whether it is a constant, or one that is decompressed."""
    return operation.type == "const" or str(operation.type).startswith("constexpr_")


def reads(operation: Any) -> Iterator[str]:
    """Names of all that it takes in."""
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                yield binding.name


def rename(operation: Any, names: Mapping[str, str]) -> None:
    """Put new names for old ones, of what comes in and what goes out."""
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                binding.name = names.get(binding.name, binding.name)
    for output in operation.outputs:
        output.name = names.get(output.name, output.name)


def file_values(operation: Any) -> Iterator[Any]:
    """Values that stand in the weight file, in an order that is always the same."""
    values = [operation.attributes[key] for key in sorted(operation.attributes)]
    for key in sorted(operation.inputs):
        bindings = operation.inputs[key].arguments
        values += [each.value for each in bindings if each.WhichOneof("binding") == "value"]
    yield from (value for value in values if value.WhichOneof("value") == "blobFileValue")


def named(kind: str, name: str, output: Any) -> Any:
    """An operation of type `kind` with one output of the ValueType `output`; both are called `name`."""
    from coremltools.proto import MIL_pb2

    operation = MIL_pb2.Operation(type=kind)
    operation.attributes["name"].CopyFrom(text(name))
    operation.outputs.add(name=name, type=output)
    return operation


def constant(name: str, value: str) -> Any:
    """A constant of text."""
    found = text(value)
    operation = named("const", name, found.type)
    operation.attributes["val"].CopyFrom(found)
    return operation


def text(value: str) -> Any:
    """A Value of text."""
    from coremltools.proto import MIL_pb2

    found = MIL_pb2.Value()
    found.type.tensorType.dataType = MIL_pb2.DataType.Value("STRING")
    found.immediateValue.tensor.strings.values.append(value.encode())
    return found
