"""Where the bits of codes stand: a table per format, read in one direction to pack and in the other to unpack."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import gcd

import torch
from torch import Tensor

from sdhub.core.errors import UsageError


@dataclass(frozen=True)
class Field:
    """`width` bits of code `value`, from its bit `low` up, stand in byte `byte`, from its bit `shift` up."""

    value: int
    low: int
    byte: int
    shift: int
    width: int

    @property
    def mask(self) -> int:
        """`width` ones."""
        return (1 << self.width) - 1


@dataclass(frozen=True)
class Layout:
    """Blocks of `values` codes of `bits` bits in `size` bytes; every bit of both is in one of the `fields`."""

    bits: int
    values: int
    size: int
    fields: tuple[Field, ...]

    def pack(self, codes: Tensor) -> Tensor:
        """uint8 (blocks, `size`) of uint8 codes (blocks · `values`,)."""
        block = codes.view(-1, self.values)
        packed = torch.zeros(block.shape[0], self.size, dtype=torch.uint8, device=codes.device)
        for field in self.fields:
            packed[:, field.byte] |= ((block[:, field.value] >> field.low) & field.mask) << field.shift
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """uint8 codes (blocks · `values`,) of uint8 (blocks · `size`,)."""
        block = packed.view(-1, self.size)
        codes = torch.zeros(block.shape[0], self.values, dtype=torch.uint8, device=packed.device)
        for field in self.fields:
            codes[:, field.value] |= ((block[:, field.byte] >> field.shift) & field.mask) << field.low
        return codes.view(-1)


@cache
def contiguous(bits: int) -> Layout:
    """One code after the other, low bits first, across the borders of bytes."""
    values = 8 // gcd(8, bits)
    fields = []
    for value in range(values):
        low = 0
        while low < bits:
            byte, shift = divmod(value * bits + low, 8)
            width = min(bits - low, 8 - shift)
            fields.append(Field(value, low, byte, shift, width))
            low += width
    return Layout(bits, values, values * bits // 8, tuple(fields))


def to_unsigned(codes: Tensor, bits: int, offset: int) -> Tensor:
    """Flat uint8 of integer `codes` + `offset`. Raises UsageError for one that `bits` bits do not hold."""
    if codes.is_floating_point() or codes.is_complex():
        raise UsageError(f"codes of type {codes.dtype}", hint="integers")
    flat = codes.detach().reshape(-1)
    if flat.numel():
        least, greatest = int(flat.min()), int(flat.max())
        if least < -offset or greatest >= (1 << bits) - offset:
            raise UsageError(
                f"codes from {least} to {greatest} in {bits} bits",
                hint=f"{-offset} to {(1 << bits) - 1 - offset}",
            )
    return (flat.to(torch.int16) + offset).to(torch.uint8) if offset else flat.to(torch.uint8)


def to_signed(codes: Tensor, offset: int) -> Tensor:
    """int8 of uint8 `codes` - `offset`."""
    return (codes.to(torch.int16) - offset).to(torch.int8)
