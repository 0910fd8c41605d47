"""A model as a `.mlpackage` folder: the same model gives the same bytes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sdhub.backends.coreml.constants import Codes, Constants, Scalar, Target, WeightFile
from sdhub.backends.coreml.program import block_of, file_values, operations, rename
from sdhub.backends.coreml.skeleton import Weight, number_of
from sdhub.compression.affine import Grid
from sdhub.compression.palettize import Palette
from sdhub.core.errors import BuildError

AUTHOR = "com.apple.CoreML"
DATA = "Data"
BLOBS = "weights/weight.bin"
ITEMS = (
    ("model.mlmodel", "CoreML Model Specification"),
    ("weights", "CoreML Model Weights"),
)
UNTIMELY = ("com.github.apple.coremltools.conversion_date",)
SPACE = uuid.UUID("5f2d7d5c-6f1b-5b0e-9a39-0d5c9d2f4a11")


def write_package(
    model: Any,
    skeleton: Path,
    out: Path,
    weights: Sequence[Weight],
    codes: Mapping[str, Codes],
    target: Target,
) -> Iterator[str]:
    """Write `model`, a converted skeleton with its small constants in the package `skeleton`, to the folder `out`.

    Every placeholder becomes the constant of its weight: the codes of `codes`, by parameter, else floats. Yields
    each parameter's name when it has been written; `model` is changed and only complete at the end. Raises
    BuildError, also where `out` is already there; UnsupportedError for codes that cannot be had.
    """
    folder = out / DATA / AUTHOR
    if out.exists():
        raise BuildError(f"{out} is already there")
    (folder / BLOBS).parent.mkdir(parents=True)
    file = WeightFile(folder / BLOBS)
    yield from _fill(model, skeleton / DATA / AUTHOR / BLOBS, file, weights, codes, target)
    for key in UNTIMELY:
        model.description.metadata.userDefined.pop(key, None)
    (folder / "model.mlmodel").write_bytes(model.SerializeToString(deterministic=True))
    (out / "Manifest.json").write_text(json.dumps(_manifest(), indent=4, sort_keys=True) + "\n", encoding="utf-8")


def _fill(
    model: Any,
    blobs: Path,
    file: WeightFile,
    weights: Sequence[Weight],
    codes: Mapping[str, Codes],
    target: Target,
) -> Iterator[str]:
    from coremltools.libmilstoragepython import _BlobStorageReader
    from coremltools.proto import MIL_pb2

    reader = _BlobStorageReader(str(blobs)) if blobs.is_file() else None
    taken = {output.name for operation in operations(model) for output in operation.outputs}
    renamed: dict[str, str] = {}
    filled: list[Any] = []
    for operation in operations(model):
        number = number_of(operation.outputs[0].name) if operation.type == "constexpr_lut_to_dense" else None
        if number is None:
            rename(operation, renamed)
            for value in file_values(operation):
                kind = MIL_pb2.DataType.Name(value.type.tensorType.dataType)
                value.blobFileValue.offset = file.copy(reader, value.blobFileValue.offset, kind)
            filled.append(operation)
            continue
        weight, output = weights[number], operation.outputs[0]
        half = output.type.tensorType.dataType == MIL_pb2.DataType.Value("FLOAT16")
        scalar: Scalar = "float16" if half else "float32"
        value = codes.get(weight.name, weight.tensor)
        name = _unused(constant_name(weight.name, value, scalar), taken)
        renamed[output.name] = name
        filled += Constants(file, target, scalar).operations(name, tuple(weight.tensor.shape), value)
        yield weight.name
    block = block_of(model)
    del block.operations[:]
    block.operations.extend(filled)
    for index, name in enumerate(block.outputs):
        block.outputs[index] = renamed.get(name, name)


def constant_name(parameter: str, value: Tensor | Codes, scalar: Scalar) -> str:
    """What the constant of a parameter is called in the program: as coremltools and its tools would call it."""
    name = f"{parameter.replace('.', '_')}_to_{'fp16' if scalar == 'float16' else 'fp32'}"
    if isinstance(value, Palette):
        return f"{name}_palettized"
    return f"{name}_quantized" if isinstance(value, Grid) else name


def _unused(name: str, taken: set[str]) -> str:
    found, number = name, 1
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    taken.add(found)
    return found


def _manifest() -> dict[str, Any]:
    entries = {
        str(uuid.uuid5(SPACE, name)).upper(): {
            "author": AUTHOR,
            "description": text,
            "name": name,
            "path": f"{AUTHOR}/{name}",
        }
        for name, text in ITEMS
    }
    return {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": str(uuid.uuid5(SPACE, ITEMS[0][0])).upper(),
    }
