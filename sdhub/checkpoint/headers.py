"""Headers of safetensors files, read strictly; never a weight.

Format: https://huggingface.co/docs/safetensors. Eight bytes hold the length of the header (little endian), the
header is a JSON object of names with dtype, shape and offsets into the data that follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdhub.core.documents import parse_object, shown
from sdhub.core.errors import SourceError

LENGTH_BYTES = 8
MAX_HEADER = 100_000_000
MAX_DIMENSIONS = 16
LFS_POINTER = b"version "
HINT = "get the file again"

DTYPES: Mapping[str, tuple[int, str]] = {
    "BOOL": (8, "bool"),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "F4": (4, "float4_e2m1fn_x2"),
    "F6_E2M3": (6, "float6_e2m3"),
    "F6_E3M2": (6, "float6_e3m2"),
    "U16": (16, "uint16"),
    "I16": (16, "int16"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "U32": (32, "uint32"),
    "I32": (32, "int32"),
    "F32": (32, "float32"),
    "U64": (64, "uint64"),
    "I64": (64, "int64"),
    "F64": (64, "float64"),
    "C64": (64, "complex64"),
}


@dataclass(frozen=True)
class Tensor:
    """One entry: `dtype` by torch's name, `bytes` of data."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The tensors of a file by name, in the order of their data, and its free-text metadata."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def header_length(first: bytes, size: int, where: str) -> int:
    """The header's length in bytes from the first eight of a file of `size`. Raises SourceError."""
    if first[:LENGTH_BYTES] == LFS_POINTER:
        raise SourceError(f"{where} is a Git LFS pointer, not the file", hint="run: git lfs pull")
    if size < LENGTH_BYTES + 2 or len(first) < LENGTH_BYTES:
        raise SourceError(f"{where} is too short for a safetensors file", hint=HINT)
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if length > MAX_HEADER:
        raise SourceError(f"{where} is no safetensors file, or its header is over 100 MB", hint=HINT)
    if length < 2 or LENGTH_BYTES + length > size:
        raise SourceError(f"{where} is cut off inside its header, or no safetensors file", hint=HINT)
    return length


def parse_header(raw: bytes, size: int, where: str) -> Header:
    """The header in `raw` (without its length) of a file of `size` bytes.

    Every tensor must have a known dtype and the span that its shape asks for; together they must fill the file
    without gap or overlap. Raises SourceError that names `where`.
    """
    if not raw.startswith(b"{"):
        raise SourceError(f"{where} is no safetensors file", hint=HINT)
    document = parse_object(raw, f"the header of {where}")
    metadata = _metadata(document.pop("__metadata__", {}), where)
    spans = sorted(
        ((*_span(entry, name, where), name) for name, entry in document.items()),
        key=lambda span: (span[0], span[1], span[2]),
    )
    tensors, end = {}, 0
    for start, stop, name in spans:
        if start != end:
            raise SourceError(f"{where}: tensor {shown(name)} leaves a gap or overlaps another", hint=HINT)
        tensors[name] = _tensor(document[name], stop - start, name, where)
        end = stop
    if LENGTH_BYTES + len(raw) + end != size:
        raise SourceError(
            f"{where} has {size} bytes, its header describes {LENGTH_BYTES + len(raw) + end}", hint=HINT
        )
    return Header(tensors, metadata)


def read_header(path: Path, where: str = "") -> Header:
    """The header of a local file; nothing behind it is read. Raises SourceError."""
    where = where or shown(path.name)
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = header_length(stream.read(LENGTH_BYTES), size, where)
        raw = stream.read(length)
    return parse_header(raw, size, where)


def _metadata(value: Any, where: str) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise SourceError(f"{where}: __metadata__ must map text to text", hint=HINT)
    return value


def _span(entry: Any, name: str, where: str) -> tuple[int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise SourceError(f"{where}: tensor {shown(name)} needs dtype, shape and data_offsets", hint=HINT)
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_natural(each) for each in offsets):
        raise SourceError(f"{where}: tensor {shown(name)} has broken offsets", hint=HINT)
    start, stop = offsets
    if start > stop:
        raise SourceError(f"{where}: tensor {shown(name)} ends before it begins", hint=HINT)
    return start, stop


def _tensor(entry: Mapping[str, Any], span: int, name: str, where: str) -> Tensor:
    kind, shape = entry["dtype"], entry["shape"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise SourceError(f"{where}: tensor {shown(name)} has the unknown dtype {shown(kind, 20)}", hint=HINT)
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_natural(each) for each in shape):
        raise SourceError(f"{where}: tensor {shown(name)} has a broken shape", hint=HINT)
    bits, dtype = DTYPES[kind]
    if math.prod(shape) * bits != span * 8:
        raise SourceError(f"{where}: tensor {shown(name)} does not fill its span", hint=HINT)
    return Tensor(dtype, tuple(shape), span)


def _natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
