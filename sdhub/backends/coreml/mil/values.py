"""Constants of an ML program: written in the program itself, in a weight file, or decompressed from others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdhub.backends.coreml.mil.files import PackageFiles
from sdhub.backends.coreml.mil.packing import Array, packed_bytes, unpack
from sdhub.backends.coreml.mil.types import Scalar, TensorType, tensor_type
from sdhub.core.errors import BuildError


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor known before the program runs; `array` reads or decompresses it anew at each call."""

    name: str
    type: TensorType
    make: Callable[[], Array]

    def array(self) -> Array:
        """The tensor, in numpy's type for its scalar (`Scalar.numpy`).

        Raises BuildError where it is not what the program declares.
        """
        try:
            array = self.make()
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            raise BuildError(f"constant {self.name} cannot be decompressed: {error}") from None
        if not self.type.holds(array.shape) or array.dtype != self.type.scalar.numpy:
            raise BuildError(f"constant {self.name} is {array.dtype} {list(array.shape)}, declared {self.type}")
        return array

    def python(self) -> Any:
        """The tensor as a Python number, text, truth value, or nested list of them."""
        return self.array().tolist()


def constant(name: str, message: Any, files: PackageFiles) -> Constant:
    """The constant in a `Value` message, for use as `name`; its blob is checked, but not read.

    Raises BuildError where the value is broken or no tensor.
    """
    of = tensor_type(message.type, f"constant {name}")
    if None in of.shape:
        raise BuildError(f"constant {name} has no fixed shape: {of}")
    kind = message.WhichOneof("value")
    if kind == "blobFileValue":
        offset = int(message.blobFileValue.offset)
        weights = files.weights(message.blobFileValue.fileName)
        weights.locate(offset, of)
        return Constant(name, of, lambda: weights.read(offset, of))
    if kind != "immediateValue" or message.immediateValue.WhichOneof("value") != "tensor":
        raise BuildError(f"constant {name} is not a tensor")
    array = _immediate(name, message.immediateValue.tensor, of)
    return Constant(name, of, lambda: array)


def decompressed(
    outputs: Iterable[tuple[str, TensorType]],
    function: Callable[..., tuple[Array, ...]],
    parameters: Mapping[str, Constant],
) -> list[Constant]:
    """The constants that a `constexpr_…` operation gives, made of other constants when they are asked for."""

    def make(index: int) -> Callable[[], Array]:
        return lambda: function(**{name: each.array() for name, each in parameters.items()})[index]

    return [Constant(name, of, make(index)) for index, (name, of) in enumerate(outputs)]


def _immediate(name: str, message: Any, of: TensorType) -> Array:
    field = message.WhichOneof("value")
    shape = [int(length or 0) for length in of.shape]
    if field is None:  # an empty tensor may come without any field
        values: Array = np.zeros(0, dtype=of.scalar.numpy)
    elif field == "bytes":
        values = _from_bytes(name, message.bytes.values, of)
    else:
        values = _from_field(name, getattr(message, field).values, field, of.scalar)
    if values.size != of.elements:
        raise BuildError(f"constant {name} has {values.size} elements, declared {of}")
    return values.reshape(shape)


def _from_bytes(name: str, data: bytes, of: TensorType) -> Array:
    scalar = of.scalar
    if scalar.numpy in ("object", "bool") or len(data) != packed_bytes(of.elements, scalar.bits):
        raise BuildError(f"constant {name} has {len(data)} bytes, declared {of}")
    if scalar.bits < 8:
        packed = np.frombuffer(data, dtype=np.uint8)
        return unpack(packed, scalar.bits, of.elements, signed=scalar.name.startswith("int"))
    return np.frombuffer(data, dtype=np.dtype(scalar.numpy).newbyteorder("<")).astype(scalar.numpy)


_KINDS = {"floats": "f", "doubles": "f", "ints": "iu", "longInts": "iu", "bools": "b", "strings": "O"}


def _from_field(name: str, values: Any, field: str, scalar: Scalar) -> Array:
    kind = np.dtype(scalar.numpy)
    if kind.kind not in _KINDS[field]:
        raise BuildError(f"constant {name} is written as {field}, declared {scalar.name}")
    wide: Array = np.array(values, dtype={"i": np.int64, "u": np.int64, "f": np.float64}.get(kind.kind, kind))
    return wide.astype(kind)
