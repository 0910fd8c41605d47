"""The folder of an .mlpackage: Manifest.json names the items under Data/, one of them the model specification."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from sdhub.backends.coreml.mil.weights import WeightFile
from sdhub.core.errors import BuildError, UnsafeError

MOST_MANIFEST_BYTES = 2**20
MOST_SPECIFICATION_BYTES = 2**28
_HERE = "@model_path/"


class PackageFiles:
    """Where the files of a package are; every path in it is checked to stay in the folder, or in one of `homes`.

    Raises BuildError where it is not a package, or its manifest is broken, UnsafeError where the manifest leads
    out of the folder.
    """

    def __init__(self, folder: Path, homes: Collection[Path] = ()) -> None:
        if not folder.is_dir():
            raise BuildError(f"{folder} is not an .mlpackage: no such folder")
        self.folder = folder
        self._homes = tuple(homes)
        self._weights: dict[str, WeightFile] = {}
        self.specification = self._specification()

    def read_specification(self) -> bytes:
        """The bytes of the model specification, a protobuf message.

        Raises BuildError where it is missing or larger than 256 MiB.
        """
        return _read(self.specification, MOST_SPECIFICATION_BYTES)

    def weights(self, name: str) -> WeightFile:
        """The weight file that a program calls `name`: "@model_path/" stands for the specification's folder.

        Raises BuildError where there is none, UnsafeError where the name leads out of the package.
        """
        if name not in self._weights:
            if not name.startswith(_HERE):
                raise BuildError(f"{self.specification}: weight file {name!r} is not below {_HERE}")
            path = self._inside(self.specification.parent, name.removeprefix(_HERE))
            if not path.is_file():
                raise BuildError(f"{self.folder} lacks its weight file {path.relative_to(self.folder)}")
            self._weights[name] = WeightFile(path)
        return self._weights[name]

    def check(self) -> None:
        """Check all weight files that were asked for, as `WeightFile.check`."""
        for file in self._weights.values():
            file.check()

    def _specification(self) -> Path:
        manifest = self.folder / "Manifest.json"
        try:
            document = json.loads(_read(manifest, MOST_MANIFEST_BYTES))
            item = document["itemInfoEntries"][document["rootModelIdentifier"]]["path"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise BuildError(f"{manifest} is broken: {type(error).__name__} {error}") from None
        if not isinstance(item, str):
            raise BuildError(f"{manifest} is broken: the path of the root model is no text")
        path = self._inside(self.folder / "Data", item)
        if not path.is_file():
            raise BuildError(f"{self.folder} lacks its model, {path.relative_to(self.folder)}")
        return path

    def _inside(self, base: Path, name: str) -> Path:
        parts = PurePosixPath(name)
        path = base / parts
        safe = not parts.is_absolute() and ".." not in parts.parts and "\\" not in name and "\0" not in name
        resolved = path.resolve()
        if not safe or not any(resolved.is_relative_to(root) for root in self._roots()):
            raise UnsafeError(f"{self.folder}: {name!r} leads out of the package")
        return path

    def _roots(self) -> list[Path]:
        """Where links may lead: into the package, and from a snapshot in the Hub's cache to the cache's blobs."""
        caches = [each.parent / "blobs" for each in self.folder.absolute().parents if each.name == "snapshots"]
        return [root.resolve() for root in (self.folder, *caches, *self._homes)]


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise BuildError(f"{path} is larger than {most} bytes")
    return data


def parse(files: PackageFiles) -> Any:
    """The `Model` message of a package.

    Raises BuildError where the bytes are not one, or it is nested too deeply.
    """
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    model = Model_pb2.Model()
    try:
        model.ParseFromString(files.read_specification())
    except DecodeError:
        raise BuildError(f"{files.specification} is no model: cut short, damaged, or nested too deeply") from None
    return model
