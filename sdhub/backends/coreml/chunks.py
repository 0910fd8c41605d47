"""A program in two halves of about the same weight: an iPhone loads one after the other.

Apple's apps run the halves in turn and give the second what it asks for by name, from the first's outputs and from
the inputs of both. What goes across is given in 32 bits, as apple/ml-stable-diffusion does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sdhub.backends.coreml.program import block_of, constant, is_constant, named, operations, reads, rename
from sdhub.core.errors import BuildError

WINDOW = 0.05  # how far from the middle, as a share of all weights, a place that fewer numbers cross is looked for
INSIDE = "_half"  # ends the names of what goes across, where it has 16 bits

Count = Callable[[str], int]


def halves(model: Any, count: Count) -> tuple[Any, Any]:
    """Two Model messages that do together what `model` does, which stays as it is.

    `count`: how many numbers the constant of a name has. Raises BuildError where there is no place to cut.
    """
    steps = [operation for operation in operations(model) if not is_constant(operation)]
    place = _place(model, steps, count)
    crossing = _crossing(steps, place)
    return _first(model, steps[:place], crossing), _second(model, steps[place:], crossing)


def _place(model: Any, steps: Sequence[Any], count: Count) -> int:
    """After how many steps to cut: near the middle, where the fewest numbers go across."""
    loads = _loads(model, steps, count)
    middle, window = loads[-1] / 2, WINDOW * loads[-1]
    places = range(1, len(steps))
    nearest = min((abs(loads[at] - middle) for at in places), default=0.0)
    near = [at for at in places if abs(loads[at] - middle) <= max(window, nearest)]
    costs = {at: _crossing(steps, at) for at in near}
    fit = [at for at, found in costs.items() if all(_kind(each) in ("FLOAT16", "FLOAT32") for each in found)]
    if not fit:
        raise BuildError("the program cannot be cut in two", hint="build it in one piece")
    return min(fit, key=lambda at: (sum(_numbers(each) for each in costs[at]), at))


def _loads(model: Any, steps: Sequence[Any], count: Count) -> list[int]:
    """Numbers in the constants that the first n steps read, for every n."""
    constants = {operation.outputs[0].name for operation in operations(model) if is_constant(operation)}
    loads = [0]
    for step in steps:
        fresh = constants & set(reads(step))
        constants -= fresh
        loads.append(loads[-1] + sum(map(count, fresh)))
    return loads


def _crossing(steps: Sequence[Any], place: int) -> list[Any]:
    """What the first `place` steps make and others read, in order: names and types."""
    later = {name for step in steps[place:] for name in reads(step)}
    return [output for step in steps[:place] for output in step.outputs if output.name in later]


def _first(model: Any, steps: Sequence[Any], crossing: Sequence[Any]) -> Any:
    half, names = _half(model, steps), _inside(crossing)
    block = block_of(half)
    for operation in block.operations:
        rename(operation, names)
    for each in crossing:
        if each.name in names:
            block.operations.extend(_cast(each, names[each.name], each.name, "FLOAT32"))
        block.outputs.append(each.name)
        half.description.output.append(_feature(model, each))
    return half


def _second(model: Any, steps: Sequence[Any], crossing: Sequence[Any]) -> Any:
    half, names = _half(model, steps), _inside(crossing)
    block = block_of(half)
    body = list(block.operations)
    del block.operations[:]
    for each in crossing:
        half.mlProgram.functions["main"].inputs.add(name=each.name, type=_typed(each, "FLOAT32"))
        half.description.input.append(_feature(model, each))
        if each.name in names:
            block.operations.extend(_cast(each, each.name, names[each.name], "FLOAT16"))
    for operation in body:
        rename(operation, names)
    block.operations.extend(body)
    block.outputs.extend(block_of(model).outputs)
    half.description.output.extend(model.description.output)
    return half


def _half(model: Any, steps: Sequence[Any]) -> Any:
    """`steps` with the constants and inputs that they read, and without outputs."""
    half = type(model)()
    half.CopyFrom(model)
    block = block_of(half)
    read = {name for step in steps for name in reads(step)}
    del block.operations[:], block.outputs[:], half.description.output[:]
    block.operations.extend(
        each for each in operations(model) if is_constant(each) and each.outputs[0].name in read
    )
    block.operations.extend(steps)
    for features in (half.mlProgram.functions["main"].inputs, half.description.input):
        for index in reversed(range(len(features))):
            if features[index].name not in read:
                del features[index]
    return half


def _inside(crossing: Sequence[Any]) -> dict[str, str]:
    return {each.name: each.name + INSIDE for each in crossing if _kind(each) == "FLOAT16"}


def _cast(variable: Any, source: str, target: str, kind: str) -> list[Any]:
    """`source` as `target`, of another type."""
    wanted = constant(f"{target}_dtype", "fp32" if kind == "FLOAT32" else "fp16")
    operation = named("cast", target, _typed(variable, kind))
    for key, name in (("x", source), ("dtype", wanted.outputs[0].name)):
        operation.inputs[key].arguments.add().name = name
    return [wanted, operation]


def _typed(variable: Any, kind: str) -> Any:
    from coremltools.proto import MIL_pb2

    found = MIL_pb2.ValueType()
    found.CopyFrom(variable.type)
    found.tensorType.dataType = MIL_pb2.DataType.Value(kind)
    return found


def _feature(model: Any, variable: Any) -> Any:
    """A description of 32-bit floats."""
    from coremltools.proto import FeatureTypes_pb2

    feature = type(model.description.output[0])(name=variable.name)
    feature.type.multiArrayType.dataType = FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.Value("FLOAT32")
    feature.type.multiArrayType.shape.extend(_sides(variable))
    return feature


def _sides(variable: Any) -> list[int]:
    return [int(side.constant.size) for side in variable.type.tensorType.dimensions]


def _numbers(variable: Any) -> int:
    found = 1
    for side in _sides(variable):
        found *= side
    return found


def _kind(variable: Any) -> str:
    from coremltools.proto import MIL_pb2

    return str(MIL_pb2.DataType.Name(variable.type.tensorType.dataType))
