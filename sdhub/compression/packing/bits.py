"""Codes without gaps, low bits first: code i has the bits i·b to i·b + b - 1 of the data, bit 0 of a byte first.

So stand palette indices in Core ML's `constexpr_lut_to_dense` (1, 2, 4, 6, 8 bits from iOS 16, 3 from iOS 18) and
the values of MIL's uint1 to uint6 and int4, and so stand OpenVINO's u4 and i4: the first of two in the low nibble.
Signed codes are two's complement.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from sdhub.compression.packing.layout import contiguous, to_signed, to_unsigned
from sdhub.core.errors import UsageError


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return -(-count * bits // 8)


def pack_bits(codes: Tensor, bits: int, *, signed: bool = False) -> Tensor:
    """uint8 (⌈n · `bits` / 8⌉,) of n integer codes, in row-major order; the bits left over are 0.

    `bits`: 1 to 8. Codes are in [0, 2^bits - 1], or where `signed` in [-2^(bits-1), 2^(bits-1) - 1]. Raises
    UsageError for another width or code.
    """
    layout = contiguous(_checked(bits))
    # Adding half the range and turning the top bit is two's complement.
    offset = 1 << (bits - 1) if signed else 0
    flat = to_unsigned(codes, bits, offset) ^ offset
    size = packed_size(flat.numel(), bits)
    over = -flat.numel() % layout.values
    if over:
        flat = torch.nn.functional.pad(flat, (0, over))
    return layout.pack(flat).view(-1)[:size]


def unpack_bits(data: Tensor, bits: int, shape: Sequence[int], *, signed: bool = False) -> Tensor:
    """The codes of `shape` that `pack_bits` packed: uint8, or int8 where `signed`.

    `data`: uint8 or int8, any shape, of exactly the bytes that they take. Raises UsageError for another number.
    """
    layout = contiguous(_checked(bits))
    count = prod(shape)
    if data.dtype not in (torch.uint8, torch.int8) or data.numel() != packed_size(count, bits):
        raise UsageError(
            f"{data.numel()} elements of type {data.dtype} for {count} codes of {bits} bits",
            hint=f"{packed_size(count, bits)} bytes",
        )
    flat = data.detach().reshape(-1).view(torch.uint8)
    over = -flat.numel() % layout.size
    if over:
        flat = torch.nn.functional.pad(flat, (0, over))
    codes = layout.unpack(flat)[:count].view(tuple(shape))
    half = 1 << (bits - 1)
    return to_signed(codes ^ half, half) if signed else codes


def _checked(bits: int) -> int:
    if not 1 <= bits <= 8:
        raise UsageError(f"codes of {bits} bits", hint="1 to 8")
    return bits
