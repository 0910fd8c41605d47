"""Quantization of activations, as in packages with 8-bit weights and activations."""

from __future__ import annotations

from torch import Tensor

from sdhub.backends.coreml.mil.operations.registry import operation

_LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}


@operation
def quantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    output_dtype: str,
    axis: int | None = None,
) -> Tensor:
    """round(input / scale) + zero_point, clipped to the type."""
    whole = (input / _along(scale, input, axis)).round()
    if zero_point is not None:
        whole = whole + _along(zero_point.float(), input, axis)
    return whole.clamp(*_LIMITS[output_dtype])


@operation
def dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int | None = None
) -> Tensor:
    """scale · (input − zero_point)."""
    whole = input.float()
    if zero_point is not None:
        whole = whole - _along(zero_point.float(), input, axis)
    return whole * _along(scale, input, axis)


def _along(parameter: Tensor, x: Tensor, axis: int | None) -> Tensor:
    if parameter.dim() == 0 or axis is None:
        return parameter
    place = [1] * x.dim()
    place[axis] = -1
    return parameter.reshape(place)
