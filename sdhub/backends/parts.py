"""The weights of a component, written layer by layer and joined into safetensors shards in bounded memory.

A layer's tensors are a small file of their own until all are there, so that a run that was cut off goes on at the
next layer; joining copies bytes and never holds a tensor.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.checkpoint.headers import LENGTH_BYTES, read_header
from sdhub.core.errors import BuildError
from sdhub.core.work import write_atomic

if TYPE_CHECKING:
    import torch

SHARD = 5 * 10**9  # bytes of a file at most, as diffusers and transformers write them
CHUNK = 2**24
ALIGNMENT = 8
NAMES = {  # torch's names, as `headers` gives them, in the format's own
    "uint8": "U8",
    "int8": "I8",
    "int32": "I32",
    "int64": "I64",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
}


@dataclass(frozen=True)
class _Entry:
    """Where a tensor's bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size: int


class Parts:
    """Files of single layers in `folder`, which is made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, layer: str) -> bool:
        """Whether the layer is written."""
        return self._path(layer).is_file()

    def put(self, layer: str, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str] | None = None) -> None:
        """Write a layer's tensors, by their full names, with notes on how they came about."""
        from safetensors.torch import save

        write_atomic(self._path(layer), save(dict(tensors), metadata={"layer": layer, **(notes or {})}))

    def notes(self, layer: str) -> Mapping[str, str]:
        """What was noted of a written layer."""
        return read_header(self._path(layer)).metadata

    def join(self, folder: Path, stem: str, *, metadata: Mapping[str, str], shard: int = SHARD) -> list[Path]:
        """Write `<stem>.safetensors` into `folder`, or shards of at most `shard` bytes with their index, hold them
        against the parts, and remove these.

        Tensors stand in the order of their names, largest types first, as safetensors writes them itself. Raises
        BuildError naming the first tensor that is not what its part has.
        """
        entries = sorted(
            (entry for path in sorted(self.folder.glob("*.safetensors")) for entry in _entries(path)),
            key=lambda entry: entry.name,
        )
        groups = _groups(entries, shard)
        files = []
        for number, group in enumerate(groups, start=1):
            name = f"{stem}.safetensors"
            if len(groups) > 1:
                name = f"{stem}-{number:05}-of-{len(groups):05}.safetensors"
            files.append(folder / name)
            _write(files[-1], group, metadata)
            _prove(files[-1], group)
        if len(groups) > 1:
            index = {
                "metadata": {"total_size": sum(entry.size for entry in entries)},
                "weight_map": {
                    entry.name: path.name for path, group in zip(files, groups, strict=True) for entry in group
                },
            }
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (folder / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")
        shutil.rmtree(self.folder)
        return files

    def _path(self, layer: str) -> Path:
        return self.folder / f"{hashlib.sha256(layer.encode()).hexdigest()[:32]}.safetensors"


def _entries(path: Path) -> list[_Entry]:
    with path.open("rb") as stream:
        start = LENGTH_BYTES + int.from_bytes(stream.read(LENGTH_BYTES), "little")
    found = []
    for name, tensor in read_header(path).tensors.items():
        found.append(_Entry(name, tensor.dtype, tensor.shape, path, start, tensor.bytes))
        start += tensor.bytes
    return found


def _groups(entries: list[_Entry], most: int) -> list[list[_Entry]]:
    groups: list[list[_Entry]] = [[]]
    held = 0
    for entry in entries:
        if groups[-1] and held + entry.size > most:
            groups.append([])
            held = 0
        groups[-1].append(entry)
        held += entry.size
    return groups


def _write(path: Path, entries: list[_Entry], metadata: Mapping[str, str]) -> None:
    # Wide types first keeps every tensor aligned to its type.
    ordered = sorted(entries, key=lambda entry: (-_width(entry), entry.name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in ordered:
        header[entry.name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [end, end + entry.size],
        }
        end += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as target:
        target.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for entry in ordered:
            with entry.file.open("rb") as source:
                source.seek(entry.start)
                _copy(source, target, entry.size)


def _prove(path: Path, entries: list[_Entry]) -> None:
    """Read each tensor by safetensors' own library, and compare it, bit by bit, with its part's."""
    import torch
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as joined:
        names = set(joined.keys())
        for entry in entries:
            with safe_open(str(entry.file), framework="pt") as part:
                wanted = part.get_tensor(entry.name)
            found = joined.get_tensor(entry.name) if entry.name in names else wanted.new_empty(0)
            same = (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
            if not same or not torch.equal(_bits(found), _bits(wanted)):
                raise BuildError(f"{path.name}: {entry.name} was not written as it is")
        if len(names) != len(entries):
            raise BuildError(f"{path.name} holds {len(names)} tensors, not {len(entries)}")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.reshape(-1).view(torch.uint8)


def _width(entry: _Entry) -> int:
    digits = "".join(each for each in entry.dtype.partition("_")[0] if each.isdigit())
    return int(digits or 8)


def _copy(source: Any, target: Any, size: int) -> None:
    while size:
        chunk = source.read(min(size, CHUNK))
        target.write(chunk)
        size -= len(chunk)
