"""What a model says of itself: inputs, outputs, metadata. Source: Model.proto and FeatureTypes.proto."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdhub.core.errors import BuildError

_DTYPES = {65552: "float16", 65568: "float32", 65600: "float64", 131080: "int8", 131104: "int32"}
SCALARS = {"float16": "fp16", "float32": "fp32", "float64": "fp64", "int8": "int8", "int32": "int32"}


@dataclass(frozen=True)
class Feature:
    """One input or output: its shape and the name of its numpy or torch type.

    An input can be flexible: `choices` are the only shapes it takes, or `ranges` the least and greatest length of
    each dimension (None: no bound); then `shape` is the usual one. An output whose shape a run decides has shape
    None.
    """

    dtype: str
    shape: tuple[int, ...] | None
    choices: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape may be given."""
        if self.choices:
            return shape in self.choices
        if self.ranges:
            return len(shape) == len(self.ranges) and all(
                low <= length and (high is None or length <= high)
                for length, (low, high) in zip(shape, self.ranges, strict=True)
            )
        return shape == self.shape

    def __str__(self) -> str:
        if self.choices:
            return f"{self.dtype} {' or '.join(str(list(choice)) for choice in self.choices)}"
        if self.ranges:
            lengths = ", ".join(f"{low}…{'' if high is None else high}" for low, high in self.ranges)
            return f"{self.dtype} [{lengths}]"
        return f"{self.dtype} {'of any shape' if self.shape is None else list(self.shape)}"


@dataclass(frozen=True)
class Description:
    """One function of a model: its name, inputs and outputs in their order, and the metadata of the model.

    `metadata` has what the author wrote under his own keys, and, where they are not empty, `description`,
    `author`, `license` and `version`, which a key of his own does not hide.
    """

    function: str
    inputs: Mapping[str, Feature]
    outputs: Mapping[str, Feature]
    metadata: Mapping[str, str]


def describe(message: Any, function: str | None) -> Description:
    """Read a `ModelDescription` message; `function` None means the usual one.

    Raises BuildError where there is no such function, it has state, or an input or output is no array.
    """
    chosen, name = _function(message, function)
    if len(chosen.state):
        raise BuildError(f"state {chosen.state[0].name!r} is not supported")
    return Description(
        name,
        {each.name: _feature(each, "input") for each in chosen.input},
        {each.name: _feature(each, "output") for each in chosen.output},
        _metadata(message.metadata),
    )


def _function(message: Any, function: str | None) -> tuple[Any, str]:
    if not len(message.functions):
        if function not in (None, "main"):
            raise BuildError(f"no function {function!r}; there is main alone")
        return message, "main"
    functions = {each.name: each for each in message.functions}
    name = function or message.defaultFunctionName
    if name not in functions:
        raise BuildError(f"no function {name!r}; there are {', '.join(functions)}")
    return functions[name], name


def _feature(message: Any, role: str) -> Feature:
    kind = message.type.WhichOneof("Type")
    if kind != "multiArrayType":
        have = (kind or "nothing").removesuffix("Type")
        raise BuildError(f"{role} {message.name!r} is of type {have}; only arrays are supported")
    array = message.type.multiArrayType
    dtype = _DTYPES.get(array.dataType)
    if dtype is None:
        raise BuildError(f"{role} {message.name!r} has data type {array.dataType}, which is not known")
    shape = tuple(array.shape)
    return Feature(
        dtype,
        shape if shape or role == "input" else None,
        tuple(tuple(each.shape) for each in array.enumeratedShapes.shapes),
        tuple((each.lowerBound, _bound(each.upperBound)) for each in array.shapeRange.sizeRanges),
    )


def _bound(upper: int) -> int | None:
    return None if upper < 0 else upper


def _metadata(message: Any) -> dict[str, str]:
    fixed = {
        "description": message.shortDescription,
        "author": message.author,
        "license": message.license,
        "version": message.versionString,
    }
    return {**message.userDefined, **{key: value for key, value in fixed.items() if value}}
