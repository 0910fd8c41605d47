"""Tensors of Nunchaku's W4A4 linear layers, as `nunchaku_lite` of diffusers and Nunchaku's own files have them.

The order is that in which the threads of a warp load the operands of NVIDIA's m16n8k64 matrix instructions: tiles
of 128 outputs by 64 inputs, cut into the pieces that one thread holds. Source: MIT Han Lab, DeepCompressor
(`backend/nunchaku`), and diffusers (`quantizers/nunchaku`). A layer has N outputs and K inputs, both multiples of
128, and a rank r, a multiple of 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdhub.compression.packing.bits import pack_bits, unpack_bits
from sdhub.compression.packing.permutation import Permutation
from sdhub.core.errors import UsageError

TILE = 128
RANK = 16
GROUP, MICRO_GROUP = 64, 16


def pack_qweight(codes: Tensor) -> Tensor:
    """`qweight`: int8 (N, K / 2) of integer codes (N, K).

    Codes are in [-8, 7] (int4, two's complement) or in [0, 15] (e2m1, see `formats.E2M1`): both fill a nibble.
    Raises UsageError for other codes, and unless N and K are multiples of 128.
    """
    _matrix(codes, "codes", TILE, TILE)
    signed = bool((codes < 0).any())
    ordered = _weight_order(*codes.shape).apply(codes)
    return pack_bits(ordered, 4, signed=signed).view(torch.int8).view(codes.shape[0], -1)


def unpack_qweight(packed: Tensor, *, signed: bool) -> Tensor:
    """Codes (N, K) of `qweight`: int8 in [-8, 7] where `signed` (int4), else uint8 in [0, 15] (e2m1)."""
    _matrix(packed, "qweight", TILE, TILE // 2)
    rows, columns = packed.shape[0], packed.shape[1] * 2
    codes = unpack_bits(packed, 4, (rows * columns,), signed=signed)
    return _weight_order(rows, columns).undo(codes).view(rows, columns)


def pack_scale(scale: Tensor) -> Tensor:
    """`wscales`: (G, N) of one scale per output and group (N, G); `bias` and `smooth_factor`: (n,) of (n,).

    The type says which: float8_e4m3fn are NVFP4's scales of 16 inputs (G = K / 16), others int4's of 64. Shapes
    are nominal, the order is the tiles'. Raises UsageError unless N and K, or n, are multiples of 128.
    """
    if scale.ndim == 1:
        _multiple(scale.shape[0], TILE, "channels")
        return _scale_order(scale.shape[0], 1).apply(scale).view(-1)
    groups = _groups(scale.dtype)
    _matrix(scale, "scales", TILE, groups)
    return _order_of(scale.dtype, *scale.shape).apply(scale).view(scale.shape[1], scale.shape[0])


def unpack_scale(packed: Tensor) -> Tensor:
    """Scales (N, G) of `wscales` (G, N), or the (n,) of `bias` and `smooth_factor`."""
    if packed.ndim == 1:
        _multiple(packed.shape[0], TILE, "channels")
        return _scale_order(packed.shape[0], 1).undo(packed).view(-1)
    _matrix(packed, "wscales", _groups(packed.dtype), TILE)
    groups, rows = packed.shape
    return _order_of(packed.dtype, rows, groups).undo(packed).view(rows, groups)


def pack_lowrank(factor: Tensor, *, down: bool) -> Tensor:
    """`proj_down`: (K, r) of the factor (r, K); `proj_up`: (N, r) of the factor (N, r), where W ≈ up @ down.

    Raises UsageError unless N or K is a multiple of 128 and r of 16.
    """
    _matrix(factor, "a low-rank factor", *((RANK, TILE) if down else (TILE, RANK)))
    rank, channels = factor.shape if down else factor.shape[::-1]
    return _lowrank_order(channels, rank, down).apply(factor).view(channels, rank)


def unpack_lowrank(packed: Tensor, *, down: bool) -> Tensor:
    """The factor (r, K) of `proj_down` (K, r), or (N, r) of `proj_up` (N, r)."""
    _matrix(packed, "a packed low-rank factor", TILE, RANK)
    channels, rank = packed.shape
    factor = _lowrank_order(channels, rank, down).undo(packed)
    return factor.view(rank, channels) if down else factor.view(channels, rank)


def _weight_order(rows: int, columns: int) -> Permutation:
    return Permutation((rows // 128, 8, 2, 8, columns // 64, 2, 4, 8), (0, 4, 1, 3, 6, 2, 5, 7))


def _scale_order(rows: int, groups: int) -> Permutation:
    return Permutation((rows // 128, 8, 2, 4, 2, groups), (0, 5, 1, 3, 2, 4))


def _micro_order(rows: int, groups: int) -> Permutation:
    return Permutation((rows // 128, 4, 4, 8, groups // 4, 4), (0, 4, 3, 2, 1, 5))


def _lowrank_order(channels: int, rank: int, down: bool) -> Permutation:
    if down:
        return Permutation((rank // 16, 2, 8, channels // 16, 2, 4, 2), (3, 0, 2, 5, 1, 4, 6))
    return Permutation((channels // 16, 2, 8, rank // 16, 2, 4, 2), (0, 3, 2, 5, 1, 4, 6))


def _order_of(dtype: torch.dtype, rows: int, groups: int) -> Permutation:
    return (_micro_order if dtype == torch.float8_e4m3fn else _scale_order)(rows, groups)


def _groups(dtype: torch.dtype) -> int:
    """Groups in 128 inputs."""
    return TILE // (MICRO_GROUP if dtype == torch.float8_e4m3fn else GROUP)


def _matrix(tensor: Tensor, name: str, rows: int, columns: int) -> None:
    if tensor.ndim != 2 or tensor.shape[0] % rows or tensor.shape[1] % columns:
        raise UsageError(
            f"{name} of shape {tuple(tensor.shape)} cannot be packed for Nunchaku",
            hint=f"a multiple of {rows} by a multiple of {columns}",
        )


def _multiple(count: int, of: int, name: str) -> None:
    if count % of:
        raise UsageError(f"{count} {name} cannot be packed for Nunchaku", hint=f"a multiple of {of}")
