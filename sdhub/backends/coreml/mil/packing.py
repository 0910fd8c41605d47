"""Integers of 1 to 6 bits, packed from the least significant bit of each byte on, as MIL does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` integers of `bits` bits take."""
    return -(-count * bits // 8)


def unpack(packed: Array, bits: int, count: int, *, signed: bool = False) -> Array:
    """The first `count` integers of `bits` bits (1 to 8) in the bytes `packed`, as uint8, or int8 where `signed`.

    Raises ValueError where there are fewer or more bytes than they take.
    """
    if len(packed) != packed_bytes(count, bits):
        raise ValueError(f"{count} integers of {bits} bits do not fit {len(packed)} bytes")
    width = math.lcm(bits, 8) // 8  # bytes after which the pattern repeats
    rows = np.zeros((-(-len(packed) // width), width), dtype=np.uint8)
    rows.reshape(-1)[: len(packed)] = packed
    mask = np.uint8(2**bits - 1)
    numbers = np.empty((len(rows), width * 8 // bits), dtype=np.uint8)
    for index in range(numbers.shape[1]):
        byte, shift = divmod(index * bits, 8)
        number = rows[:, byte] >> np.uint8(shift)
        if shift + bits > 8:
            number |= rows[:, byte + 1] << np.uint8(8 - shift)
        numbers[:, index] = number & mask
    flat = numbers.reshape(-1)[:count]
    return _signed(flat, bits) if signed else flat


def _signed(numbers: Array, bits: int) -> Array:
    spare = np.int8(8 - bits)
    signed: Array = (numbers << np.uint8(spare)).view(np.int8) >> spare
    return signed
