"""Nunchaku's layers on any device: the published files unpacked, and what the kernels compute with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch

from sdhub.compression.formats import E2M1
from sdhub.compression.packing import unpack_awq, unpack_awq_scales, unpack_lowrank, unpack_qweight, unpack_scale
from sdhub.compression.w4a4 import GROUP, linear


class W4A4Linear(torch.nn.Module):
    """A linear layer whose inputs are rounded to 4 bits, token by token; its kernel computes in `dtype`."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], precision: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.precision = cast(Literal["int4", "nvfp4"], precision)
        self.compute_dtype = dtype
        self.residual = residual(tensors, precision)
        self.smooth = unpack_scale(tensors["smooth_factor"]).float()
        self.down = unpack_lowrank(tensors["proj_down"], down=True).float()
        self.up = unpack_lowrank(tensors["proj_up"], down=False).float()
        self.bias = unpack_scale(tensors["bias"]).float() if "bias" in tensors else None
        self.out_features, self.in_features = self.residual.shape

    def forward(self, inputs: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """(..., K) to (..., N), of the inputs' type."""
        flat = inputs.reshape(-1, self.in_features)
        given = linear(flat, self.residual, self.smooth, self.down, self.up, self.precision, self.compute_dtype)
        if self.bias is not None:
            given = given + self.bias
        return given.to(self.compute_dtype).to(inputs.dtype).view(*inputs.shape[:-1], -1)


def residual(tensors: Mapping[str, torch.Tensor], precision: str) -> torch.Tensor:
    """The 4-bit part of a W4A4 layer, dequantized: (N, K) float32."""
    scale = unpack_scale(tensors["wscales"]).float()
    if precision == "int4":
        values = unpack_qweight(tensors["qweight"], signed=True).float()
    else:
        values = torch.tensor(E2M1)[unpack_qweight(tensors["qweight"], signed=False).long()]
        scale = scale * tensors["wtscale"].float() * unpack_scale(tensors["wcscales"]).float()[:, None]
    return (values.unflatten(1, (-1, GROUP[precision])) * scale[..., None]).flatten(1)


def w4a16_linear(tensors: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.nn.Linear:
    """A plain linear layer with the weights of a W4A16 one, (N, K)."""
    codes = unpack_awq(tensors["qweight"]).float()
    scale, zero = (each.float() for each in unpack_awq_scales(tensors["wscales"], tensors["wzeros"]))
    groups = codes.unflatten(1, (scale.shape[1], -1))
    weight = ((groups - zero[..., None]) * scale[..., None]).flatten(1)
    if tuple(weight.shape) != shape:
        raise ValueError(f"weights of shape {tuple(weight.shape)}, not {shape}")
    layer = torch.nn.Linear(shape[1], shape[0], bias="bias" in tensors, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    if "bias" in tensors:
        layer.bias = torch.nn.Parameter(tensors["bias"].float(), requires_grad=False)
    return layer
