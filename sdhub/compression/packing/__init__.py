"""Codes in the bits of files: for every format a packing and its unpacking.

`pack_bits`      any width without gaps, low bits first: Core ML's palettes and integers, OpenVINO's u4 and i4
`pack_sdnq`      SDNQ's blocks
`pack_qweight`   Nunchaku's W4A4 linear layers, with `pack_scale` and `pack_lowrank`
`pack_awq`       Nunchaku's W4A16 linear layers, with `pack_awq_scales`

Bytes are those of little-endian machines.
"""

from sdhub.compression.packing.awq import pack_awq, pack_awq_scales, unpack_awq, unpack_awq_scales
from sdhub.compression.packing.bits import pack_bits, packed_size, unpack_bits
from sdhub.compression.packing.nunchaku import (
    pack_lowrank,
    pack_qweight,
    pack_scale,
    unpack_lowrank,
    unpack_qweight,
    unpack_scale,
)
from sdhub.compression.packing.sdnq import pack_sdnq, unpack_sdnq

__all__ = [
    "pack_awq",
    "pack_awq_scales",
    "pack_bits",
    "pack_lowrank",
    "pack_qweight",
    "pack_scale",
    "pack_sdnq",
    "packed_size",
    "unpack_awq",
    "unpack_awq_scales",
    "unpack_bits",
    "unpack_lowrank",
    "unpack_qweight",
    "unpack_scale",
    "unpack_sdnq",
]
