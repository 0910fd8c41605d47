"""Types of values in an ML program: `DataType` and `ValueType` of MIL.proto."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sdhub.core.errors import BuildError

MOST_ELEMENTS = 2**31  # of one tensor; attention of 1024 by 1024 pixels has a sixth of it
MOST_DIMENSIONS = 16


@dataclass(frozen=True)
class Scalar:
    """The type of one element.

    `bits` is its size in a file, `numpy` what holds it once it is read (integers below 8 bits take 8),
    `blob` the code that weight files give it (`BlobDataType`), or None where they cannot hold it.
    """

    name: str
    bits: int
    numpy: str
    blob: int | None = None

    @property
    def floating(self) -> bool:
        return self.name.startswith("fp")


_SCALARS = {
    1: Scalar("bool", 8, "bool"),
    2: Scalar("string", 0, "object"),
    10: Scalar("fp16", 16, "float16", blob=1),
    11: Scalar("fp32", 32, "float32", blob=2),
    12: Scalar("fp64", 64, "float64"),
    21: Scalar("int8", 8, "int8", blob=4),
    22: Scalar("int16", 16, "int16", blob=6),
    23: Scalar("int32", 32, "int32", blob=14),
    24: Scalar("int64", 64, "int64"),
    25: Scalar("int4", 4, "int8", blob=8),
    31: Scalar("uint8", 8, "uint8", blob=3),
    32: Scalar("uint16", 16, "uint16", blob=7),
    33: Scalar("uint32", 32, "uint32", blob=15),
    34: Scalar("uint64", 64, "uint64"),
    35: Scalar("uint4", 4, "uint8", blob=11),
    36: Scalar("uint2", 2, "uint8", blob=10),
    37: Scalar("uint1", 1, "uint8", blob=9),
    38: Scalar("uint6", 6, "uint8", blob=13),
    39: Scalar("uint3", 3, "uint8", blob=12),
}
SCALARS = {scalar.name: scalar for scalar in _SCALARS.values()}


@dataclass(frozen=True)
class TensorType:
    """Shape and type of a tensor; None stands for a length that only a run decides, () for a scalar."""

    scalar: Scalar
    shape: tuple[int | None, ...]

    @property
    def elements(self) -> int:
        """How many elements there are, lengths that only a run decides counted as 1."""
        return math.prod(1 if length is None else length for length in self.shape)

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of `shape` is of this type."""
        return len(shape) == len(self.shape) and all(
            want is None or want == have for want, have in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.scalar.name} [{', '.join('?' if n is None else str(n) for n in self.shape)}]"


def tensor_type(message: Any, of: str) -> TensorType:
    """The type in a `ValueType` message.

    Raises BuildError, beginning with `of`, where it is no tensor, or one that nobody could hold in memory.
    """
    kind = message.WhichOneof("type")
    if kind != "tensorType":
        raise BuildError(f"{of} is a {(kind or 'nothing').removesuffix('Type')}; only tensors are supported")
    tensor = message.tensorType
    scalar = _SCALARS.get(tensor.dataType)
    if scalar is None:
        raise BuildError(f"{of} has data type {tensor.dataType}, which is not known")
    if tensor.rank != len(tensor.dimensions) or tensor.rank > MOST_DIMENSIONS:
        raise BuildError(f"{of} is said to have {tensor.rank} dimensions and lists {len(tensor.dimensions)}")
    known = TensorType(scalar, tuple(_length(dimension) for dimension in tensor.dimensions))
    if known.elements > MOST_ELEMENTS:
        raise BuildError(f"{of} is {known}: more than {MOST_ELEMENTS} elements")
    return known


def _length(dimension: Any) -> int | None:
    return int(dimension.constant.size) if dimension.WhichOneof("dimension") == "constant" else None
