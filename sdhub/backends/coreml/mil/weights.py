"""Weight files of a package: blob storage, format 2.

A header of 64 bytes (uint32 count of blobs, uint32 version), then blobs: 64 bytes of metadata, aligned to 64
(uint32 sentinel 0xDEADBEEF, uint32 data type, uint64 bytes, uint64 offset of the data, uint64 unused bits at their
end), and the data. A program names a blob by the offset of its metadata. Source: MILBlob/Blob/StorageFormat.hpp of
coremltools.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdhub.backends.coreml.mil.packing import Array, packed_bytes, unpack
from sdhub.backends.coreml.mil.types import SCALARS, TensorType
from sdhub.core.errors import BuildError

ALIGNMENT = 64
SENTINEL = 0xDEADBEEF
VERSION = 2
_HEADER = struct.Struct("<II56x")
_METADATA = struct.Struct("<IIQQQ32x")
_NAMES = {scalar.blob: scalar.name for scalar in SCALARS.values() if scalar.blob is not None}


@dataclass(frozen=True)
class _Blob:
    """One blob: where its metadata and its data are, in bytes from the start of the file."""

    metadata: int
    start: int
    end: int
    code: int


class WeightFile:
    """Blobs of one file, read when they are asked for.

    Every blob that a program names goes through `locate` before any is read, so that a broken file is refused at
    once. Blobs are copied from the file rather than mapped: a file that shrinks meanwhile is an error, not a
    crash, and what was read and turned into a tensor leaves memory.

    Raises BuildError where the header is not one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = path.stat().st_size
        self._blobs: dict[int, _Blob] = {}
        header = self._bytes(0, _HEADER.size, "its header")
        self._count, version = _HEADER.unpack(header)
        if version != VERSION:
            raise BuildError(f"{path} has version {version} of the blob format; {VERSION} is known")

    def locate(self, offset: int, of: TensorType) -> None:
        """Check the blob whose metadata is at `offset`: it lies in the file and holds just a tensor of type `of`.

        Raises BuildError otherwise.
        """
        blob = self._blobs.get(offset) or self._read_metadata(offset)
        where = f"{self.path}: the blob at {offset}"
        if of.scalar.blob is None:
            raise BuildError(f"{where} is said to be {of.scalar.name}, which a weight file cannot hold")
        if blob.code != of.scalar.blob:
            have = _NAMES.get(blob.code, f"data type {blob.code}")
            raise BuildError(f"{where} is {have}, while the program says {of}")
        need = packed_bytes(of.elements, of.scalar.bits)
        if blob.end - blob.start != need:
            raise BuildError(f"{where} has {blob.end - blob.start} bytes, while {of} takes {need}")
        self._blobs[offset] = blob

    def check(self) -> None:
        """Check that the blobs located so far are as many as the header allows, and that none lies in another.

        Raises BuildError otherwise.
        """
        if len(self._blobs) > self._count:
            raise BuildError(f"{self.path} counts {self._count} blobs, the program uses {len(self._blobs)}")
        spans = sorted(
            span
            for blob in self._blobs.values()
            for span in ((blob.metadata, blob.metadata + _METADATA.size), (blob.start, blob.end))
            if span[0] < span[1]
        )
        for before, after in itertools.pairwise(spans):
            if after[0] < before[1]:
                raise BuildError(f"{self.path}: blobs overlap at byte {after[0]}")

    def read(self, offset: int, of: TensorType) -> Array:
        """The tensor of type `of` whose metadata is at `offset`; integers below 8 bits come unpacked.

        Raises BuildError where `locate` would, or the file is shorter than it was.
        """
        self.locate(offset, of)
        blob = self._blobs[offset]
        scalar = of.scalar
        kind = np.dtype(np.uint8 if scalar.bits < 8 else scalar.numpy)
        count = (blob.end - blob.start) // kind.itemsize
        flat: Array = np.fromfile(self.path, dtype=kind.newbyteorder("<"), count=count, offset=blob.start)
        if len(flat) != count:
            raise BuildError(f"{self.path} ends inside the blob at {offset}")
        if scalar.bits < 8:
            flat = unpack(flat, scalar.bits, of.elements, signed=scalar.name.startswith("int"))
        return flat.reshape([int(length or 0) for length in of.shape])

    def _read_metadata(self, offset: int) -> _Blob:
        where = f"{self.path}: the metadata at {offset}"
        if offset % ALIGNMENT or offset < _HEADER.size:
            raise BuildError(f"{where} cannot be: no multiple of {ALIGNMENT} behind the header")
        fields = _METADATA.unpack(self._bytes(offset, _METADATA.size, f"the metadata at {offset}"))
        sentinel, code, size, start, unused = fields
        if sentinel != SENTINEL:
            raise BuildError(f"{where} begins with {sentinel:#010x} instead of {SENTINEL:#010x}")
        if start < _HEADER.size or start % ALIGNMENT or start + size > self._size:
            raise BuildError(f"{where} points to {size} bytes at {start}, in a file of {self._size} bytes")
        narrow = code in _NAMES and SCALARS[_NAMES[code]].bits < 8
        if narrow and unused > 7:
            raise BuildError(f"{where} says that {unused} bits of the last byte are unused")
        return _Blob(offset, start, start + size, code)

    def _bytes(self, offset: int, count: int, what: str) -> bytes:
        with self.path.open("rb") as file:
            file.seek(min(offset, self._size))
            data = file.read(count)
        if len(data) != count:
            raise BuildError(f"{self.path} has {self._size} bytes and ends before {what}")
        return data
