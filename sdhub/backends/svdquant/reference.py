"""Nunchaku's layers on any device: the published files unpacked, and what the kernels compute with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch

from sdhub.compression.formats import E2M1
from sdhub.compression.packing import unpack_awq, unpack_awq_scales, unpack_lowrank, unpack_qweight, unpack_scale
from sdhub.compression.w4a4 import GROUP, linear


@dataclass(frozen=True)
class Unpacked:
    """A W4A4 layer of N outputs and K inputs, float32.

    The dequantized 4-bit part `residual` (N, K), `smooth` (K,), `down` (r, K), `up` (N, r), `bias` (N,) or None.
    """

    residual: torch.Tensor
    smooth: torch.Tensor
    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor | None

    def outputs(self, start: int, stop: int) -> Unpacked:
        """The layer with some of its outputs."""
        bias = None if self.bias is None else self.bias[start:stop]
        return replace(self, residual=self.residual[start:stop], up=self.up[start:stop], bias=bias)


def unpacked(tensors: Mapping[str, torch.Tensor], precision: str) -> Unpacked:
    """A layer from its stored tensors, by the names of `nunchaku_lite`."""
    return Unpacked(
        residual(tensors, precision),
        unpack_scale(tensors["smooth_factor"]).float(),
        unpack_lowrank(tensors["proj_down"], down=True).float(),
        unpack_lowrank(tensors["proj_up"], down=False).float(),
        unpack_scale(tensors["bias"]).float() if "bias" in tensors else None,
    )


class W4A4Linear(torch.nn.Module):
    """A linear layer whose inputs are rounded to 4 bits, token by token; its kernel computes in `dtype`.

    `shifted`: inputs come from GELU and are int4 (see `w4a4.linear`). Its numbers are float32, whatever the module
    around it is cast to.
    """

    def __init__(self, layer: Unpacked, precision: str, dtype: torch.dtype, *, shifted: bool = False) -> None:
        super().__init__()
        for name, tensor in vars(layer).items():
            self.register_buffer(name, tensor, persistent=False)
        self.shifted = shifted
        self.precision = cast(Literal["int4", "nvfp4"], precision)
        self.compute_dtype = dtype
        self.out_features, self.in_features = layer.residual.shape

    def forward(self, inputs: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """(..., K) to (..., N), of the inputs' type."""
        flat, dtype = inputs.reshape(-1, self.in_features), self.compute_dtype
        given = linear(
            flat, self.residual, self.smooth, self.down, self.up, self.precision, dtype, shifted=self.shifted
        )
        if self.bias is not None:
            given = given + self.bias
        return given.to(dtype).to(inputs.dtype).view(*inputs.shape[:-1], -1)

    def _apply(self, function: Any, recurse: bool = True) -> W4A4Linear:
        """To another device, and to no other type."""
        device = function(torch.empty(0)).device
        for name, tensor in self._buffers.items():
            self._buffers[name] = None if tensor is None else tensor.to(device)
        return self


class Summed(torch.nn.Module):
    """The sum of layers, each of which takes its own part of the input's channels, in order."""

    def __init__(self, layers: Sequence[W4A4Linear]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)
        self.widths = [layer.in_features for layer in layers]

    def forward(self, inputs: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """(..., K) to (..., N)."""
        parts = inputs.split(self.widths, dim=-1)
        return torch.stack([layer(part) for layer, part in zip(self.layers, parts, strict=True)]).sum(dim=0)


def residual(tensors: Mapping[str, torch.Tensor], precision: str) -> torch.Tensor:
    """The 4-bit part of a W4A4 layer, dequantized: (N, K) float32."""
    scale = unpack_scale(tensors["wscales"]).float()
    if precision == "int4":
        values = unpack_qweight(tensors["qweight"], signed=True).float()
    else:
        values = torch.tensor(E2M1)[unpack_qweight(tensors["qweight"], signed=False).long()]
        scale = scale * unpack_scale(tensors["wcscales"]).float()[:, None]
        if "wtscale" in tensors:
            scale = scale * tensors["wtscale"].float()
    return (values.unflatten(1, (-1, GROUP[precision])) * scale[..., None]).flatten(1)


def w4a16_linear(tensors: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.nn.Linear:
    """A plain linear layer with the weights of a W4A16 one, (N, K)."""
    codes = unpack_awq(tensors["qweight"]).float()
    scale, zero = (each.float() for each in unpack_awq_scales(tensors["wscales"], tensors["wzeros"]))
    groups = codes.unflatten(1, (scale.shape[1], -1))
    weight = ((groups - zero[..., None]) * scale[..., None]).flatten(1)
    return plain_linear(weight, tensors.get("bias"), shape)


def plain_linear(weight: torch.Tensor, bias: torch.Tensor | None, shape: tuple[int, int]) -> torch.nn.Linear:
    """A linear layer of `shape` with this weight and bias. Raises ValueError for a weight of another shape."""
    if tuple(weight.shape) != shape:
        raise ValueError(f"weights of shape {tuple(weight.shape)}, not {shape}")
    layer = torch.nn.Linear(shape[1], shape[0], bias=bias is not None, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.float(), requires_grad=False)
    return layer
