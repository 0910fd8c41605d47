"""The `constexpr_…` operations: constants kept as indices, small integers or sparse values, made dense.

Each function takes numpy arrays under the names of the operation's parameters and returns the operation's outputs.
It raises ValueError where the arrays do not fit each other. Arithmetic is done in float32 and rounded once to the
declared type. Source: documentation of the operations, `ops/defs/iOS16/constexpr_ops.py` and
`ops/defs/iOS18/compression.py` of coremltools.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdhub.backends.coreml.mil.packing import Array, packed_bytes, unpack

Arrays = tuple[Array, ...]


def lut_to_dense(
    indices: Array, lut: Array, shape: Array | None = None, vector_axis: Array | None = None
) -> Arrays:
    """Look `indices` up in a palette.

    With `shape` (iOS 16) indices are packed bytes and `lut` is one palette of 2, 4, 16, 64 or 256 values. Without
    it (iOS 18) `indices` has the K dimensions of the result and `lut` K + 2: palettes per group, entries of a
    palette, and length of the vectors, which lie along `vector_axis`.
    """
    if shape is not None:
        if lut.ndim != 1 or len(lut) not in (2, 4, 16, 64, 256):
            raise ValueError(f"a palette of shape {list(lut.shape)}")
        lengths = _lengths(shape)
        flat = unpack(indices.reshape(-1), len(lut).bit_length() - 1, math.prod(lengths))
        return (lut[flat].reshape(lengths),)
    if lut.ndim != indices.ndim + 2:
        raise ValueError(f"palettes of {lut.ndim} dimensions for indices of {indices.ndim}")
    if indices.size and int(indices.max()) >= lut.shape[-2]:
        raise ValueError(f"index {int(indices.max())} into a palette of {lut.shape[-2]}")
    groups, (entries, length) = lut.shape[:-2], lut.shape[-2:]
    first = np.arange(math.prod(groups), dtype=np.int32).reshape(groups) * entries
    rows = _spread(indices.astype(np.int32), first, np.add)
    vectors = lut.reshape(-1, length)[rows]
    if length == 1:
        return (vectors[..., 0],)
    if vector_axis is None:
        raise ValueError("vectors without the axis they lie along")
    axis = range(indices.ndim)[int(vector_axis)]
    result = list(indices.shape)
    result[axis] *= length
    return (np.moveaxis(vectors, -1, axis + 1).reshape(result),)


def affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> Arrays:
    """scale · (quantized_data − zero_point), both one number or one per index along `axis` (iOS 16)."""
    place = [1] * quantized_data.ndim
    place[int(axis)] = -1

    def along(parameter: Array) -> Array:
        return parameter.astype(np.float32).reshape(place if parameter.ndim else [1] * quantized_data.ndim)

    return (_scaled(quantized_data, along(scale), along(zero_point)).astype(scale.dtype),)


def blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Arrays:
    """scale · (data − offset), each for blocks of `data`, as long along an axis as the quotient of the lengths."""
    if offset is not None and offset.shape != scale.shape:
        raise ValueError(f"offsets of shape {list(offset.shape)} and scales of {list(scale.shape)}")
    wide = data.astype(np.float32)
    if offset is not None:
        wide = _spread(wide, offset.astype(np.float32), np.subtract)
    return (_spread(wide, scale.astype(np.float32), np.multiply).astype(scale.dtype),)


def sparse_to_dense(nonzero_data: Array, mask: Array, shape: Array | None = None) -> Arrays:
    """`nonzero_data` where `mask` is set, 0 elsewhere; with `shape` (iOS 16) the mask has a bit per element."""
    if shape is not None:
        lengths = _lengths(shape)
        count = math.prod(lengths)
        if mask.size != packed_bytes(count, 1):
            raise ValueError(f"a mask of {mask.size} bytes for {count} elements")
        mask = np.unpackbits(mask.reshape(-1), count=count, bitorder="little").reshape(lengths)
    dense = np.zeros(mask.shape, dtype=nonzero_data.dtype)
    chosen = mask != 0
    if np.count_nonzero(chosen) != nonzero_data.size:
        raise ValueError(f"{nonzero_data.size} values for {np.count_nonzero(chosen)} set bits of the mask")
    dense[chosen] = nonzero_data.reshape(-1)
    return (dense,)


def lut_to_sparse(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: Array | None = None
) -> Arrays:
    """The mask and the values of a sparse tensor whose values are kept as indices into palettes."""
    (indices,) = sparse_to_dense(indices_nonzero_data, indices_mask)
    (dense,) = lut_to_dense(indices, lut, vector_axis=vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1 and vector_axis is not None:
        mask = np.repeat(mask, lut.shape[-1], axis=int(vector_axis))
    return mask, dense[mask != 0]


def sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> Arrays:
    """The mask and the values of a sparse tensor whose values are quantized in blocks of the dense one."""
    (data,) = sparse_to_dense(nonzero_data, data_mask)
    (dense,) = blockwise_shift_scale(data, scale, offset)
    return data_mask, dense[data_mask != 0]


def cast(source_val: Array, output_dtype: Array) -> Arrays:
    """float16 to float32, the only cast there is."""
    if output_dtype.item() != "fp32":
        raise ValueError(f"a cast to {output_dtype.item()}")
    return (source_val.astype(np.float32),)


DECOMPRESSIONS: dict[str, Callable[..., Arrays]] = {
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_cast": cast,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_lut_to_sparse": lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": sparse_to_dense,
}


def _lengths(shape: Array) -> list[int]:
    return [int(length) for length in shape.reshape(-1)]


def _scaled(data: Array, scale: Array, shift: Array) -> Array:
    scaled: Array = (data.astype(np.float32) - shift) * scale
    return scaled


def _spread(data: Array, parameters: Array, combine: Callable[..., Any]) -> Array:
    """`combine` each block of `data` with the element of `parameters` that stands for it."""
    if data.ndim != parameters.ndim:
        raise ValueError(f"{parameters.ndim} dimensions of parameters for {data.ndim} of data")
    if not data.size:
        return data
    blocks: list[int] = []
    places: list[int] = []
    for length, count in zip(data.shape, parameters.shape, strict=True):
        if count == 0 or length % count:
            raise ValueError(f"{count} blocks of {length}")
        blocks += [count, length // count]
        places += [count, 1]
    whole: Sequence[int] = data.shape
    result: Array = combine(data.reshape(blocks), parameters.reshape(places)).reshape(whole)
    return result
