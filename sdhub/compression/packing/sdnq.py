"""SDNQ's packed weights (https://github.com/Disty0/sdnq, version 0.2.8).

Widths that divide 8 are contiguous. Of the others the first codes of a block stand whole in a byte each, and the
rest are cut up to fill the high bits of those bytes. Signed codes have half the range added; 8 bits stay as they
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from sdhub.compression.packing.layout import Field, Layout, contiguous, to_signed, to_unsigned
from sdhub.core.errors import UsageError


def _layout(bits: int, values: int, rest: Sequence[tuple[int, int, int, int, int]]) -> Layout:
    size = values * bits // 8
    whole = [Field(byte, 0, byte, 0, bits) for byte in range(size)]
    return Layout(bits, values, size, (*whole, *(Field(*each) for each in rest)))


# (value, low, byte, shift, width), as in Field.
LAYOUTS = {
    1: contiguous(1),
    2: contiguous(2),
    3: _layout(
        3,
        8,
        [
            *((3 + byte, 0, byte, 3, 3) for byte in range(3)),
            *((6 + byte, 0, byte, 6, 2) for byte in range(2)),
            *((6 + byte, 2, 2, 6 + byte, 1) for byte in range(2)),
        ],
    ),
    4: contiguous(4),
    5: _layout(
        5,
        8,
        [
            *((5 + byte, 0, byte, 5, 3) for byte in range(3)),
            *((5 + byte, 3, 3 + byte, 5, 2) for byte in range(2)),
            *((7, 4 - byte, 3 + byte, 7, 1) for byte in range(2)),
        ],
    ),
    6: _layout(6, 4, [(3, 4 - 2 * byte, byte, 6, 2) for byte in range(3)]),
    7: _layout(7, 8, [(7, 6 - byte, byte, 7, 1) for byte in range(7)]),
}


def pack_sdnq(codes: Tensor, bits: int, *, signed: bool = False) -> Tensor:
    """The `weight` of an SDNQ layer of type uint`bits`, or int`bits` where `signed`.

    `codes`: integers of any shape, in row-major order, in [0, 2^bits - 1] or [-2^(bits-1), 2^(bits-1) - 1].
    `bits`: 1 to 8. uint8, (blocks,) where a block of codes is one byte and (blocks, bytes) elsewhere; 8 bits keep
    the shape and are int8 where `signed`.

    Raises UsageError for another width or code, and where the number of codes is not a multiple of a block's
    (8 for 1, 3, 5, 7 bits, 4 for 2 and 6, 2 for 4).
    """
    offset = 1 << (bits - 1) if signed else 0
    if bits == 8:
        to_unsigned(codes, 8, offset)
        return codes.to(torch.int8 if signed else torch.uint8)
    layout = _layout_of(bits)
    flat = to_unsigned(codes, bits, offset)
    if flat.numel() % layout.values:
        raise UsageError(f"{flat.numel()} codes of {bits} bits", hint=f"a multiple of {layout.values}")
    packed = layout.pack(flat)
    return packed.view(-1) if layout.size == 1 else packed


def unpack_sdnq(packed: Tensor, bits: int, shape: Sequence[int], *, signed: bool = False) -> Tensor:
    """The codes of `shape` that `pack_sdnq` packed: uint8, or int8 where `signed`.

    Raises UsageError where `packed` does not have as many bytes as they take.
    """
    count = prod(shape)
    layout = contiguous(8) if bits == 8 else _layout_of(bits)
    if packed.dtype not in (torch.uint8, torch.int8) or packed.numel() * 8 != count * bits:
        raise UsageError(
            f"{packed.numel()} elements of type {packed.dtype} for {count} codes of {bits} bits",
            hint=f"{count * bits / 8:g} bytes",
        )
    flat = packed.detach().reshape(-1).view(torch.uint8)
    if bits == 8:
        return (flat.view(torch.int8) if signed else flat).view(tuple(shape))
    codes = layout.unpack(flat).view(tuple(shape))
    return to_signed(codes, 1 << (bits - 1)) if signed else codes


def _layout_of(bits: int) -> Layout:
    if bits not in LAYOUTS:
        raise UsageError(f"SDNQ codes of {bits} bits", hint="1 to 8")
    return LAYOUTS[bits]
