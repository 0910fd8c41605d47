"""Reading xorbs and shards (https://huggingface.co/docs/xet: "Xorb Formation" and "Shard Format").

All of it comes from strangers: every length is checked against the data before it is used.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from sdhub.hub.xet.lz4 import Lz4Error, decompress_frame

MAX_XORB_BYTES = 68 * 2**20  # 64 MiB of chunks, with their headers and footer
MAX_SHARD_BYTES = 128 * 2**20
MAX_CHUNK_BYTES = 2**17

_CHUNK_HEADER = 8
_STORED, _LZ4, _GROUPED_LZ4 = 0, 1, 2
_FOOTER_START = b"XETBLOB"
_SHARD_TAG = b"HFRepoMetaData" + bytes.fromhex("00556967456a7b815783a5bdd95ccdd14aa9")
_ENTRY = 48
_LAST = b"\xff" * 32
_HAS_VERIFICATION, _HAS_METADATA = 1 << 31, 1 << 30
_HASH = re.compile(r"[0-9a-f]{64}")


class XetError(ValueError):
    """A xorb or shard that is not well-formed."""


@dataclass(frozen=True)
class Segment:
    """A run of chunks `first` to `last` (exclusive) of a xorb; `size` bytes of a file."""

    xorb: str
    first: int
    last: int
    size: int


@dataclass(frozen=True)
class ShardFile:
    """How a file is put together. `sha256` "" when the client did not say."""

    segments: list[Segment]
    sha256: str

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return sum(segment.size for segment in self.segments)


def is_hash(text: str) -> bool:
    """Whether `text` is a Xet hash in its text form."""
    return _HASH.fullmatch(text) is not None


def hash_text(raw: bytes) -> str:
    """The text form of a 32-byte hash: four little-endian 64-bit numbers in hex."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


class Xorb:
    """An uploaded xorb: chunks by number. Reading checks the headers of all chunks. Raises XetError."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self._chunks = _chunk_positions(self._data)

    def read(self, segment: Segment) -> bytes:
        """The bytes of a segment."""
        if not 0 <= segment.first < segment.last <= len(self._chunks):
            raise XetError("a segment asks for chunks that the xorb has not")
        content = b"".join(self._chunk(number) for number in range(segment.first, segment.last))
        if len(content) != segment.size:
            raise XetError("a segment has not the size the shard says")
        return content

    def _chunk(self, number: int) -> bytes | bytearray:
        position, stored, scheme, size = self._chunks[number]
        raw = self._data[position : position + stored]
        if scheme == _STORED:
            content: bytes | bytearray = raw
        else:
            try:
                content = decompress_frame(raw, MAX_CHUNK_BYTES)
            except Lz4Error as error:
                raise XetError(str(error)) from None
        if scheme == _GROUPED_LZ4:
            content = _ungroup(bytes(content))
        if len(content) != size:
            raise XetError("a chunk has not the size its header says")
        return content


def check_xorb(path: Path) -> None:
    """Raise XetError unless the file is a sequence of chunks (with or without a footer)."""
    _chunk_positions(path.read_bytes())


def _chunk_positions(data: bytes) -> list[tuple[int, int, int, int]]:
    """(position, stored bytes, compression scheme, bytes) of each chunk."""
    chunks: list[tuple[int, int, int, int]] = []
    position = 0
    while position < len(data) and data[position : position + len(_FOOTER_START)] != _FOOTER_START:
        header = data[position : position + _CHUNK_HEADER]
        if len(header) < _CHUNK_HEADER or header[0] != 0 or header[4] > _GROUPED_LZ4:
            raise XetError("a chunk header of the xorb is not well-formed")
        stored, size = int.from_bytes(header[1:4], "little"), int.from_bytes(header[5:8], "little")
        position += _CHUNK_HEADER
        if size > MAX_CHUNK_BYTES or position + stored > len(data):
            raise XetError("a chunk of the xorb is too large or cut off")
        chunks.append((position, stored, header[4], size))
        position += stored
    if not chunks:
        raise XetError("the xorb has no chunks")
    return chunks


def _ungroup(grouped: bytes) -> bytearray:
    """Undo byte grouping: all bytes 0, 4, 8, … come first, then 1, 5, 9, … and so on."""
    content = bytearray(len(grouped))
    position = 0
    for lane in range(4):
        count = len(range(lane, len(grouped), 4))
        content[lane::4] = grouped[position : position + count]
        position += count
    return content


def parse_shard(data: bytes) -> list[ShardFile]:
    """The files a shard describes. Raises XetError."""
    if data[:32] != _SHARD_TAG or len(data) < 2 * _ENTRY:
        raise XetError("not a shard")
    (version,) = struct.unpack_from("<Q", data, 32)
    if version != 2:
        raise XetError(f"a shard of version {version}")
    files: list[ShardFile] = []
    position = _ENTRY
    try:
        while data[position : position + 32] != _LAST:
            file, position = _shard_file(data, position)
            files.append(file)
    except struct.error:
        raise XetError("the shard is cut off") from None
    return files


def _shard_file(data: bytes, position: int) -> tuple[ShardFile, int]:
    flags, count = struct.unpack_from("<32xII8x", data, position)
    position += _ENTRY
    if position + count * _ENTRY > len(data):
        raise XetError("the shard is cut off")
    segments = [_segment(data, position + number * _ENTRY) for number in range(count)]
    position += count * _ENTRY * (2 if flags & _HAS_VERIFICATION else 1)
    sha256 = ""
    if flags & _HAS_METADATA:
        (raw,) = struct.unpack_from("<32s16x", data, position)
        sha256 = hash_text(raw)
        position += _ENTRY
    return ShardFile(segments, sha256), position


def _segment(data: bytes, position: int) -> Segment:
    raw, size, first, last = struct.unpack_from("<32s4xIII", data, position)
    return Segment(hash_text(raw), first, last, size)
