"""Core ML packages run on any machine: `open_package` reads a saved .mlpackage and runs its ML program with torch.

Everything comes from the files as they are saved, whoever made them: the specification (a protobuf message), its
program, and the weight file, compressed constants included. It is for checking and for drawing where Core ML is
not: slower than Core ML, and with the arithmetic of torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdhub.backends.coreml.mil.description import SCALARS, Description, Feature, describe
from sdhub.backends.coreml.mil.files import PackageFiles, parse
from sdhub.backends.coreml.mil.program import Program, read_program
from sdhub.core.errors import BuildError, MissingExtraError, UsageError

if TYPE_CHECKING:
    import torch

    from sdhub.backends.coreml.mil.machine import Machine

Precision = Literal["float32", "float16"]
CACHE_BYTES = 2**32


class Package:
    """One function of a saved model: what it takes and gives (`inputs`, `outputs`), `metadata`, and `run`."""

    def __init__(self, path: Path, version: int, description: Description, machine: Machine) -> None:
        self.path = path
        self.specification_version = version
        self._description = description
        self._machine = machine

    @property
    def inputs(self) -> Mapping[str, Feature]:
        """What `run` takes, in the order of the model description."""
        return self._description.inputs

    @property
    def outputs(self) -> Mapping[str, Feature]:
        """What `run` gives, in the order of the model description."""
        return self._description.outputs

    @property
    def metadata(self) -> Mapping[str, str]:
        """The author's own entries, and `description`, `author`, `license`, `version` where they are not empty."""
        return self._description.metadata

    def run(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """All outputs, as tensors of the declared types, for all inputs: torch tensors or numpy arrays.

        Raises UsageError where a name, a shape or a type is not as declared, BuildError where an operation cannot
        be computed.
        """
        import torch

        checked = self._checked(inputs)
        with _naming(self.path):
            outputs = self._machine.run(checked)
        return {name: outputs[name].to(getattr(torch, each.dtype)) for name, each in self.outputs.items()}

    def _checked(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        import numpy as np
        import torch

        if set(inputs) != set(self.inputs):
            given = ", ".join(sorted(inputs)) or "nothing"
            raise UsageError(f"{self.path.name} takes {', '.join(self.inputs)}; given {given}")
        checked = {}
        for name, want in self.inputs.items():
            value = inputs[name]
            if not isinstance(value, np.ndarray | torch.Tensor):
                raise UsageError(f"{self.path.name}: {name} must be an array, not {type(value).__name__}")
            dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
            if dtype != want.dtype or not want.takes(shape):
                raise UsageError(f"{self.path.name}: {name} must be {want}, not {dtype} {list(shape)}")
            array = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
            checked[name] = array.detach().cpu()
        return checked


def open_package(
    path: str | Path,
    *,
    function: str | None = None,
    precision: Precision = "float32",
    cache_bytes: int = CACHE_BYTES,
    homes: Collection[Path] = (),
) -> Package:
    """Read and check the .mlpackage at `path`, all but the bytes of its weights.

    `function` is one of a model with several, else its usual one. `precision` says how activations are kept:
    "float32" computes in 32 bits with the weights as stored, so that what differs from the checkpoint is what the
    package stores; "float16" rounds each result that the program declares so, as a device does that computes in 16
    bits. `cache_bytes` bounds the weights kept as 32-bit tensors between runs (4 GiB, the UNet of Stable Diffusion
    1.5); what does not fit is read and decompressed again in each run. `homes` is where links in it may lead
    besides its own folder.

    Raises BuildError where a file is missing, cut short or broken, a constant does not fit its blob, or an
    operation is not known; UnsafeError where a path leads out of the package; MissingExtraError without
    coremltools.
    """
    folder = Path(path)
    try:
        from sdhub.backends.coreml.mil.machine import Machine

        files = PackageFiles(folder, homes)
        message = parse(files)
    except ImportError as error:
        raise MissingExtraError("coreml", error.name or "coremltools") from None
    with _naming(folder):
        return _open(files, message, function, Machine, precision == "float16", cache_bytes)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors inside name the package, and stay one line whatever names a stranger gave in it."""
    try:
        yield
    except BuildError as error:
        message = "".join(each if each.isprintable() else "?" for each in error.message)
        raise BuildError(message if str(path) in message else f"{path}: {message}", hint=error.hint) from None


def _open(
    files: PackageFiles,
    message: Any,
    function: str | None,
    machine: type[Machine],
    rounding: bool,
    cache_bytes: int,
) -> Package:
    kind = message.WhichOneof("Type")
    if kind != "mlProgram":
        raise BuildError(f"a model of type {kind or 'nothing'}; only ML programs are supported")
    description = describe(message.description, function)
    program = read_program(message.mlProgram, description.function, files)
    _agree(description, program)
    bound = machine(program, rounding=rounding, cache_bytes=cache_bytes)
    return Package(files.folder, int(message.specificationVersion), description, bound)


def _agree(description: Description, program: Program) -> None:
    """Check that description and program tell the same of inputs and outputs."""
    if set(description.inputs) != set(program.inputs):
        names = sorted(set(description.inputs) ^ set(program.inputs))
        raise BuildError(f"input {names[0]!r} is not in both description and program")
    for name, feature in description.inputs.items():
        of = program.inputs[name]
        fixed = not feature.choices and not feature.ranges
        if SCALARS[feature.dtype] != of.scalar.name or (fixed and not of.holds(feature.shape or ())):
            raise BuildError(f"input {name!r} is {feature} in the description, {of} in the program")
    for name, feature in description.outputs.items():
        if name not in program.outputs:
            raise BuildError(f"output {name!r} is not in the program")
        of = program.types[name]
        if SCALARS[feature.dtype] != of.scalar.name or (feature.shape and not of.holds(feature.shape)):
            raise BuildError(f"output {name!r} is {feature} in the description, {of} in the program")
