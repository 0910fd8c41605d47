"""Tensors of Nunchaku's W4A16 linear layers (AWQ, Lin et al. 2023): 4-bit weights in groups of 64 inputs.

The order is TinyChat's: four outputs side by side, and of every 32 inputs the nibbles of one int32 are inputs
2p, 2p + 8, 2p + 16, 2p + 24, 2p + 1, 2p + 9, …, low nibble first. Sources: MIT Han Lab, DeepCompressor
(`backend/tinychat`); the kernels of nunchaku_lite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdhub.compression.packing.bits import pack_bits, unpack_bits
from sdhub.compression.packing.permutation import Permutation
from sdhub.core.errors import UsageError

ROWS, GROUP = 4, 64


def pack_awq(codes: Tensor) -> Tensor:
    """`qweight`: int32 (N / 4, K / 2) of integer codes (N, K) in [0, 15].

    Raises UsageError for other codes, and unless N is a multiple of 4 and K of 64.
    """
    if codes.ndim != 2 or codes.shape[0] % ROWS or codes.shape[1] % GROUP:
        raise UsageError(
            f"codes of shape {tuple(codes.shape)} cannot be packed for W4A16",
            hint=f"a multiple of {ROWS} by a multiple of {GROUP}",
        )
    rows, columns = codes.shape
    nibbles = pack_bits(_order(rows, columns).apply(codes), 4)
    return nibbles.view(torch.int32).view(rows // ROWS, columns // 2)


def unpack_awq(packed: Tensor) -> Tensor:
    """Codes (N, K), uint8, of `qweight` (N / 4, K / 2)."""
    if packed.dtype != torch.int32 or packed.ndim != 2 or packed.shape[1] % (GROUP // 2):
        raise UsageError(
            f"a W4A16 qweight of type {packed.dtype} and shape {tuple(packed.shape)}",
            hint=f"int32, of a multiple of {GROUP // 2} columns",
        )
    rows, columns = packed.shape[0] * ROWS, packed.shape[1] * 2
    codes = unpack_bits(packed.reshape(-1).view(torch.uint8), 4, (rows * columns,))
    return _order(rows, columns).undo(codes).view(rows, columns)


def pack_awq_scales(scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """`wscales` and `wzeros`, (K / 64, N) both, of scales and zero points (N, K / 64).

    The kernel's weight is code · wscales + wzeros, so `wzeros` is -zero_point · scale, computed in float32 and
    rounded to the type of `scale`. Raises UsageError where the two differ in shape.
    """
    if scale.ndim != 2 or scale.shape != zero_point.shape:
        raise UsageError(f"scales {tuple(scale.shape)} and zero points {tuple(zero_point.shape)}, not (N, K / 64)")
    zeros = (-zero_point.float() * scale.float()).to(scale.dtype)
    return scale.detach().T.contiguous(), zeros.detach().T.contiguous()


def unpack_awq_scales(wscales: Tensor, wzeros: Tensor) -> tuple[Tensor, Tensor]:
    """Scales, and zero points as float32, (N, K / 64) both; a scale of 0 has the zero point 0."""
    if wscales.ndim != 2 or wscales.shape != wzeros.shape:
        raise UsageError(f"wscales {tuple(wscales.shape)} and wzeros {tuple(wzeros.shape)}, not (K / 64, N)")
    scale = wscales.detach().T.contiguous()
    zero_point = -wzeros.detach().T.float() / scale.float()
    return scale, torch.where(scale.float() == 0, 0.0, zero_point)


def _order(rows: int, columns: int) -> Permutation:
    return Permutation((rows // 4, 4, columns // 64, 2, 4, 4, 2), (0, 2, 1, 3, 5, 6, 4))
