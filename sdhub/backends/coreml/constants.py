"""Constants of an ML program: 16- and 32-bit floats, palettes, integer grids; and the file that holds their data.

Since iOS 16 there are one table for a whole tensor and 8-bit grids per output channel or tensor; since iOS 18
tables for groups of output channels, 3 bits, vectors, tables in 8 bits, and grids of 4 or 8 bits per block
(coremltools' `constexpr_*` operations).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdhub.backends.coreml.program import named
from sdhub.compression.affine import Grid
from sdhub.compression.packing.bits import pack_bits
from sdhub.compression.palettize import Palette
from sdhub.core.errors import BuildError, UnsupportedError

Array: TypeAlias = npt.NDArray[Any]
Codes: TypeAlias = Palette | Grid
Target = Literal["iOS16", "iOS17", "iOS18"]
Scalar = Literal["float16", "float32"]

WEIGHTS = "@model_path/weights/weight.bin"
IN_FILE = 10  # numbers from which on a tensor goes into the weight file
_METHODS = {
    "FLOAT16": "fp16",
    "FLOAT32": "float",
    "INT4": "int4",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "UINT1": "uint1",
    "UINT2": "uint2",
    "UINT3": "uint3",
    "UINT4": "uint4",
    "UINT6": "uint6",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
}
_SCALARS = {"float16": "FLOAT16", "float32": "FLOAT32", "int8": "INT8", "uint8": "UINT8", "int32": "INT32"}


def least_target(codes: Codes) -> Target:
    """The first system that reads `codes`."""
    if isinstance(codes, Palette):
        whole = len(codes.lut) == 1 and codes.cluster_dim == 1 and codes.scale is None
        return "iOS16" if whole and codes.bits != 3 else "iOS18"
    return "iOS16" if codes.bits == 8 and codes.scale.shape[1] == 1 and _whole(codes.zero_point) else "iOS18"


class WeightFile:
    """A `weight.bin` that is written, blob after blob."""

    def __init__(self, path: Path) -> None:
        from coremltools.libmilstoragepython import _BlobStorageWriter

        self._writer = _BlobStorageWriter(str(path))

    def add(self, data: Array, kind: str) -> int:
        """Append the numbers of `data`, of MIL's type `kind` (16-bit floats as uint16); gives the offset."""
        write = getattr(self._writer, f"write_{_METHODS[kind]}_data")
        return int(write(np.ascontiguousarray(data.reshape(-1))))

    def copy(self, source: Any, offset: int, kind: str) -> int:
        """Append the blob at `offset` of coremltools' reader `source`."""
        return self.add(getattr(source, f"read_{_METHODS[kind]}_data")(offset), kind)


class Constants:
    """Makes the operations of constants and puts their data into `file`.

    `target` decides the form of compressed ones, `scalar` is the type that they give.
    """

    def __init__(self, file: WeightFile, target: Target, scalar: Scalar) -> None:
        self._file, self._late, self._scalar = file, target == "iOS18", scalar

    def operations(self, name: str, shape: Sequence[int], value: Tensor | Codes) -> list[Any]:
        """Operations of which the last gives `value` in `shape`, under `name`.

        Raises BuildError for numbers that 16 bits cannot hold, UnsupportedError for codes that `target` has not.
        """
        if isinstance(value, Tensor):
            return [self._float(name, shape, value)]
        if not self._late and least_target(value) == "iOS18":
            raise UnsupportedError(f"{name}: these codes need iOS 18", hint="build for iOS 18")
        if tuple(shape)[:1] != (_rows(value),):
            raise UnsupportedError(f"{name}: codes for {_rows(value)} output channels, not {shape[0]}")
        if isinstance(value, Palette):
            return self._grouped(name, shape, value) if self._late else [self._palette(name, shape, value)]
        return [self._blocks(name, shape, value) if self._late else self._grid(name, shape, value)]

    def _float(self, name: str, shape: Sequence[int], value: Tensor) -> Any:
        data = self._rounded(name, value)
        return _operation("const", name, shape, self._scalar, attributes={"val": self._value(data, shape)})

    def _palette(self, name: str, shape: Sequence[int], palette: Palette) -> Any:
        indices = pack_bits(palette.indices, palette.bits).numpy()
        attributes = {
            "indices": self._value(indices, indices.shape),
            "lut": self._value(self._rounded(name, palette.table), (1 << palette.bits,)),
            "shape": self._value(np.array(shape, np.uint32), (len(shape),)),
        }
        return _operation("constexpr_lut_to_dense", name, shape, self._scalar, attributes=attributes)

    def _grouped(self, name: str, shape: Sequence[int], palette: Palette) -> list[Any]:
        """iOS 18's form: tables (G, 1, …, 2^bits, d) for groups of the first axis."""
        groups, entries, dim = palette.lut.shape
        if shape[0] % groups or shape[0] != groups * min(palette.group_size, shape[0]):
            raise UnsupportedError(
                f"{name}: {shape[0]} output channels in groups of {palette.group_size}",
                hint="Core ML wants groups of one size",
            )
        ones = [1] * (len(shape) - 1)
        small = palette.scale is not None
        table = palette.lut.numpy() if small else self._rounded(name, palette.table)
        kind = f"UINT{palette.bits}"
        inputs = {
            "indices": self._value(palette.indices.numpy(), (shape[0] // dim, *shape[1:]), kind),
            "lut": self._value(table, (groups, *ones, entries, dim)),
        }
        if dim > 1:
            inputs["vector_axis"] = self._value(np.array(0, np.int32), ())
        if palette.scale is None:
            return [_operation("constexpr_lut_to_dense", name, shape, self._scalar, inputs=inputs)]
        dense = f"{name}_unscaled"
        scale = self._value(self._rounded(name, palette.scale), (groups, *ones))
        return [
            _operation("constexpr_lut_to_dense", dense, shape, "int8", inputs=inputs),
            _operation(
                "constexpr_blockwise_shift_scale",
                name,
                shape,
                self._scalar,
                inputs={"data": dense, "scale": scale},
            ),
        ]

    def _grid(self, name: str, shape: Sequence[int], grid: Grid) -> Any:
        """iOS 16's form: 8 bits, a scale for each of the first axis or for all."""
        count = () if grid.scale.numel() == 1 and shape[0] != 1 else (shape[0],)
        codes = grid.codes.numpy()
        zero = torch.zeros_like(grid.scale) if grid.zero_point is None else grid.zero_point
        attributes = {
            "quantized_data": self._value(codes, shape),
            "zero_point": self._value(zero.reshape(-1).numpy().astype(codes.dtype).reshape(count), count),
            "scale": self._value(self._rounded(name, grid.scale).reshape(count), count),
            "axis": self._value(np.array(0, np.int32), ()),
        }
        return _operation("constexpr_affine_dequantize", name, shape, self._scalar, attributes=attributes)

    def _blocks(self, name: str, shape: Sequence[int], grid: Grid) -> Any:
        """iOS 18's form: a scale for each block of input channels."""
        if grid.bits not in (4, 8):
            raise UnsupportedError(f"{name}: integers of {grid.bits} bits", hint="4 or 8")
        pixels = int(np.prod(shape[2:], dtype=np.int64))
        rows, groups = grid.scale.shape
        if groups > 1 and (grid.group_size % pixels or shape[1] % groups):
            raise UnsupportedError(f"{name}: groups of {grid.group_size} inputs that cut through channels")
        sizes = (rows, groups, *[1] * (len(shape) - 2)) if len(shape) > 1 else (rows,)
        kind = ("INT" if grid.zero_point is None else "UINT") + str(grid.bits)
        inputs = {
            "data": self._value(grid.codes.numpy(), shape, kind),
            "scale": self._value(self._rounded(name, grid.scale), sizes),
        }
        if grid.zero_point is not None:
            zero = grid.zero_point
            inputs["offset"] = (
                self._value(zero.numpy().astype(np.uint8), sizes, kind)
                if _whole(zero)
                else self._value(self._rounded(name, zero), sizes)
            )
        return _operation("constexpr_blockwise_shift_scale", name, shape, self._scalar, inputs=inputs)

    def _rounded(self, name: str, tensor: Tensor) -> Array:
        if tensor.is_meta:
            raise BuildError(f"{name}: the weight has neither numbers nor codes")
        tensor = tensor.detach().cpu()
        found = tensor.to(getattr(torch, self._scalar))
        wrong = found.numel() - int(torch.isfinite(found).sum())
        if wrong:
            raise BuildError(f"{name}: {wrong} numbers are not finite in {self._scalar}")
        data: Array = found.numpy()
        return data

    def _value(self, data: Array, shape: Sequence[int], kind: str = "") -> Any:
        """A value in the program where it is small, else in the file."""
        from coremltools.proto import MIL_pb2

        kind = kind or _SCALARS.get(str(data.dtype), "UINT32")
        value = MIL_pb2.Value(type=_type(kind, shape))
        if data.size >= IN_FILE and kind != "UINT32":
            raw = data.view(np.uint16) if kind == "FLOAT16" else data
            value.blobFileValue.fileName = WEIGHTS
            value.blobFileValue.offset = self._file.add(raw, kind)
            return value
        tensor = value.immediateValue.tensor
        if kind == "FLOAT32":
            tensor.floats.values.extend(data.reshape(-1).tolist())
        elif kind == "INT32":
            tensor.ints.values.extend(data.reshape(-1).tolist())
        else:
            tensor.bytes.values = _bytes(data, kind)
        return value


def _operation(
    kind: str,
    name: str,
    shape: Sequence[int],
    scalar: str,
    *,
    attributes: dict[str, Any] | None = None,
    inputs: dict[str, Any] | None = None,
) -> Any:
    """An operation; an input is a value, or the name of one."""
    operation = named(kind, name, _type(_SCALARS[scalar], shape))
    for key, value in (attributes or {}).items():
        operation.attributes[key].CopyFrom(value)
    for key, value in (inputs or {}).items():
        binding = operation.inputs[key].arguments.add()
        if isinstance(value, str):
            binding.name = value
        else:
            binding.value.CopyFrom(value)
    return operation


def _type(kind: str, shape: Sequence[int]) -> Any:
    from coremltools.proto import MIL_pb2

    found = MIL_pb2.ValueType()
    found.tensorType.dataType = MIL_pb2.DataType.Value(kind)
    found.tensorType.rank = len(shape)
    for side in shape:
        found.tensorType.dimensions.add().constant.size = int(side)
    return found


def _bytes(data: Array, kind: str) -> bytes:
    """Little-endian, types of less than a byte packed."""
    if kind in ("INT4", "UINT1", "UINT2", "UINT3", "UINT4", "UINT6"):
        codes = torch.from_numpy(np.ascontiguousarray(data))
        return bytes(pack_bits(codes, int(kind[-1]), signed=kind == "INT4").numpy().tobytes())
    return np.ascontiguousarray(data).tobytes()


def _rows(codes: Codes) -> int:
    if isinstance(codes, Palette):
        return int(codes.indices.shape[0]) * codes.cluster_dim
    return int(codes.codes.shape[0])


def _whole(zero: Tensor | None) -> bool:
    return zero is None or bool((zero == zero.round()).all())
