"""Decompressing LZ4 frames of a bounded size.

Checksums need not be trusted: what is decompressed here is checked by the SHA-256 of the whole file.
"""

from __future__ import annotations


class Lz4Error(ValueError):
    """The data is not a well-formed LZ4 frame, or larger than allowed."""


def decompress_frame(data: bytes, limit: int) -> bytes:
    """The content of one frame of at most `limit` bytes. Raises Lz4Error."""
    from lz4.frame import LZ4FrameDecompressor

    decompressor = LZ4FrameDecompressor()
    try:
        content: bytes = decompressor.decompress(data, max_length=limit + 1)
    except (RuntimeError, EOFError) as error:
        raise Lz4Error(str(error)) from None
    if len(content) > limit:
        raise Lz4Error(f"the LZ4 frame holds more than {limit} bytes")
    if not decompressor.eof:
        raise Lz4Error("the LZ4 frame ends early")
    return content
