"""Decompressing LZ4 frames (https://github.com/lz4/lz4/tree/dev/doc, frame format 1.6).

In plain Python, because the chunks it is for are small (128 KiB) and mostly stored uncompressed. Checksums are
skipped over: what is decompressed here is checked by the SHA-256 of the whole file.
"""

from __future__ import annotations

import struct

_MAGIC = 0x184D2204
_MIN_MATCH = 4


class Lz4Error(ValueError):
    """The data is not a well-formed LZ4 frame, or larger than allowed."""


def decompress_frame(data: bytes, limit: int) -> bytearray:
    """The content of one frame of at most `limit` bytes. Raises Lz4Error."""
    try:
        return _decompress(data, limit)
    except (IndexError, struct.error):
        raise Lz4Error("the LZ4 frame ends early") from None


def _decompress(data: bytes, limit: int) -> bytearray:
    magic, flags, _ = struct.unpack_from("<IBB", data)
    if magic != _MAGIC or flags >> 6 != 1:
        raise Lz4Error("not an LZ4 frame")
    block_checksums, sized, dictionary = flags & 0x10, flags & 0x08, flags & 0x01
    position = 7 + (8 if sized else 0) + (4 if dictionary else 0)
    out = bytearray()
    while True:
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        if size == 0:
            return out
        length = size & 0x7FFFFFFF
        block = data[position : position + length]
        if len(block) != length:
            raise Lz4Error("the LZ4 frame ends early")
        if size >> 31:
            out += block
        else:
            _decompress_block(block, out, limit)
        if len(out) > limit:
            raise Lz4Error("the LZ4 frame is larger than allowed")
        position += length + (4 if block_checksums else 0)


def _decompress_block(block: bytes, out: bytearray, limit: int) -> None:
    position, end = 0, len(block)
    while position < end:
        token = block[position]
        position += 1
        literals = token >> 4
        if literals == 15:
            more = 255
            while more == 255:
                more = block[position]
                position += 1
                literals += more
        out += block[position : position + literals]
        position += literals
        if position >= end:
            break
        offset = block[position] | block[position + 1] << 8
        position += 2
        match = token & 15
        if match == 15:
            more = 255
            while more == 255:
                more = block[position]
                position += 1
                match += more
        _copy_match(out, offset, match + _MIN_MATCH, limit)
    if position != end:
        raise Lz4Error("the LZ4 block ends early")


def _copy_match(out: bytearray, offset: int, length: int, limit: int) -> None:
    start = len(out) - offset
    if offset == 0 or start < 0 or len(out) + length > limit:
        raise Lz4Error("the LZ4 block points outside the data")
    if offset >= length:
        out += out[start : start + length]
    else:
        # the match overlaps what it writes: a repeated pattern
        out += (out[start:] * (length // offset + 1))[:length]
