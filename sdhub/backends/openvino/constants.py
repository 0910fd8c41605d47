"""Weights on integer grids as constants of an OpenVINO graph.

The nodes are those that NNCF writes and that OpenVINO's plugins read. Compressed weights: integer constant →
Convert to 16 bits → Subtract (zero point) → Multiply (scale) → Reshape (from groups) → Convert. Weights that are
multiplied as integers: integer constant → Convert → Multiply (scale).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdhub.backends.openvino.graph import WEIGHT, constant_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from sdhub.compression.affine import Grid


def weight_of(operation: Any) -> torch.Tensor:
    """The float weight of a layer, output channels first; not to be written to, it is the model's own."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(constant_of(operation).data)


def put(operation: Any, grid: Grid) -> None:
    """Give a layer the weight that `grid` stands for, as a compressed constant of 4 or 8 bits."""
    import numpy as np
    from openvino import opset13 as ops

    name = operation.get_friendly_name()
    source = constant_of(operation)
    shape = list(source.get_output_shape(0))
    groups = grid.scale.shape[1]
    per_channel = groups == 1
    rows = shape if per_channel else [shape[0], groups, grid.group_size]
    scale_shape = [shape[0]] + [1] * (len(shape) - 1) if per_channel else [shape[0], groups, 1]
    codes = _integers(grid.codes.numpy().reshape(rows), grid, f"{name}/compressed")
    weight = ops.convert(codes, "f16")
    if grid.zero_point is not None:
        zero = grid.zero_point.numpy().reshape(scale_shape).astype(np.uint8)
        weight = ops.subtract(weight, ops.convert(_integers(zero, grid, f"{name}/zero_point"), "f16"))
    scale = grid.scale.numpy().reshape(scale_shape).astype(np.float16)
    weight = ops.multiply(weight, ops.constant(scale, name=f"{name}/scale"))
    if not per_channel:
        weight = ops.reshape(weight, ops.constant(np.array(shape, dtype=np.int64)), special_zero=False)
    weight = ops.convert(weight, "f32")
    weight.set_friendly_name(f"{name}/weight")
    operation.input(WEIGHT).replace_source_output(weight.output(0))


def put_integers(operation: Any, grid: Grid) -> None:
    """Give a layer whose inputs are rounded a weight of symmetric codes, one scale for each output channel."""
    import numpy as np
    from openvino import opset13 as ops

    name = operation.get_friendly_name()
    shape = [grid.codes.shape[0]] + [1] * (grid.codes.ndim - 1)
    codes = ops.convert(_integers(grid.codes.numpy(), grid, f"{name}/integers"), "f32")
    scale = ops.constant(grid.scale.numpy().reshape(shape).astype(np.float32), name=f"{name}/scale")
    weight = ops.multiply(codes, scale)
    weight.set_friendly_name(f"{name}/weight")
    operation.input(WEIGHT).replace_source_output(weight.output(0))


def _integers(codes: npt.NDArray[np.generic], grid: Grid, name: str) -> Any:
    """A constant of the grid's type; two 4-bit codes share a byte, the first in its low half."""
    import numpy as np
    import openvino

    sign, bits = "i" if grid.zero_point is None else "u", 4 if grid.bits <= 4 else 8
    kind = getattr(openvino.Type, f"{sign}{bits}")
    flat: npt.NDArray[np.uint8] = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    if bits == 4:
        even = np.append(flat, np.uint8(0)) if flat.size % 2 else flat
        flat = np.bitwise_or(even[0::2] & 15, even[1::2] << 4).astype(np.uint8)
    # Of memory of its own: a tensor over an array of NumPy's does not keep that alive.
    tensor = openvino.Tensor(kind, openvino.Shape(list(codes.shape)))
    tensor.data[...] = flat.view(tensor.data.dtype).reshape(tensor.data.shape)
    constant = openvino.op.Constant(tensor)
    constant.set_friendly_name(name)
    return constant
