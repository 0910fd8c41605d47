"""The files of a checkpoint, wherever they lie: names and sizes, small documents, safetensors headers."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdhub.checkpoint.headers import Header, read_header
from sdhub.core.documents import parse_object, shown
from sdhub.core.errors import SourceError, UnsafeError
from sdhub.core.units import MIB

MAX_DOCUMENT = 2 * MIB
MAX_INDEX = 32 * MIB
MAX_VOCABULARY = 128 * MIB
MAX_FILES = 20_000
SCHEDULER = "scheduler_config.json"
UNBOUNDED = ("lambda_min_clipped",)  # diffusers' DPM-Solvers clip nothing by default, and save that as -Infinity
MAX_FOLDERS = 32


class Tree(ABC):
    """`where` names it in messages; `sizes` has the bytes of every file by its path, with `/`."""

    where: str
    sizes: Mapping[str, int]

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The bytes of one small file."""

    @abstractmethod
    def headers(self, paths: Iterable[str]) -> dict[str, Header]:
        """The headers of safetensors files by path. Raises SourceError."""

    def prefetch(self, paths: Iterable[str]) -> None:  # noqa: B027 — local files need none
        """Say which small files will be read, so that they can come together."""

    def document(self, path: str, limit: int = MAX_DOCUMENT) -> dict[str, Any]:
        """A JSON object. Raises SourceError where it is missing, too large or broken."""
        self.require(path, limit)
        unbounded = UNBOUNDED if path.rpartition("/")[2] == SCHEDULER else ()
        return parse_object(self.read(path), f"{shown(path)} of {self.where}", unbounded)

    def require(self, path: str, limit: int) -> None:
        """Raises SourceError where a file is missing or over `limit` bytes."""
        size = self.sizes.get(path)
        if size is None:
            raise SourceError(f"{self.where} has no {shown(path)}", hint="is it a whole diffusers checkpoint?")
        if size > limit:
            raise SourceError(
                f"{shown(path)} of {self.where} has {size} bytes, more than the {limit} it may have",
                hint="a checkpoint's own tools write far smaller ones",
            )

    def inside(self, folder: str) -> list[str]:
        """Names of the files directly in `folder` ("" is the root), sorted."""
        prefix = f"{folder}/" if folder else ""
        names = (path[len(prefix) :] for path in self.sizes if path.startswith(prefix))
        return sorted(name for name in names if "/" not in name)


class Folder(Tree):
    """A local folder. Raises UnsafeError for links that lead out of it, SourceError for what is no file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.where = shown(root.name or str(root))
        self.sizes = dict(_walk(root, self.where))

    def read(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            raise SourceError(
                f"{shown(path)} of {self.where} cannot be read ({error.strerror})", hint="look at who may read it"
            ) from None

    def headers(self, paths: Iterable[str]) -> dict[str, Header]:
        return {path: read_header(self.root / path, f"{shown(path)} of {self.where}") for path in paths}


def check_path(path: str, where: str) -> None:
    """Raises UnsafeError for a path that could leave its folder, or could not be shown."""
    parts = path.split("/")
    if (
        not path
        or len(path) > 1024
        or any(part in {"", ".", ".."} for part in parts)
        or "\\" in path
        or parts[0][1:2] == ":"
        or not path.isprintable()
    ):
        raise UnsafeError(
            f"{where} names the path {shown(path)!r}, which could leave its folder",
            hint="do not use this checkpoint; ask who published it for a clean one",
        )


def stamp(path: Path) -> tuple[int, ...]:
    """What changes whenever a file is written to or another takes its place: device, inode, size, and the times of
    writing and of any change. Raises SourceError where it is gone."""
    try:
        status = path.stat()
    except OSError:
        raise SourceError(f"{shown(path.name)} is gone", hint="look at the checkpoint's path") from None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def require_same(root: Path, stamps: Mapping[str, tuple[int, ...]]) -> None:
    """Raises SourceError where a file under `root` is not the one whose stamp was taken."""
    for path, seen in stamps.items():
        if stamp(root / path) != tuple(seen):
            raise SourceError(
                f"{shown(path)} changed since it was inspected", hint="start again, and leave the files alone"
            )


def _walk(root: Path, where: str) -> Iterator[tuple[str, int]]:
    """Paths and sizes; hidden folders (.git, .cache) are not looked into, folders behind links neither."""
    homes = _homes(root)
    count = 0
    pending = [(root, 0)]
    while pending:
        top, depth = pending.pop()
        if depth > MAX_FOLDERS:
            raise SourceError(
                f"{where} has folders in folders more than {MAX_FOLDERS} deep", hint="name the checkpoint's folder"
            )
        for entry in _entries(top, where):
            count += 1
            if count > MAX_FILES:
                raise SourceError(
                    f"{where} holds more than {MAX_FILES} files", hint="name the checkpoint's folder"
                )
            path = Path(entry.path)
            if entry.is_symlink():
                _check_link(path, homes, where)
            if not entry.is_dir():
                yield path.relative_to(root).as_posix(), _size(path, where)
            elif not entry.is_symlink() and not entry.name.startswith("."):
                pending.append((path, depth + 1))


def _entries(folder: Path, where: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(
            f"the folder {shown(folder.name)} of {where} cannot be read ({error.strerror})",
            hint="look at who may read it",
        ) from None


def _homes(root: Path) -> tuple[Path, ...]:
    """Where links may lead: the folder, and for a snapshot of the Hub's cache its repository's blobs."""
    real = root.resolve()
    if real.parent.name == "snapshots":
        return real, real.parent.parent / "blobs"
    return (real,)


def _check_link(path: Path, homes: tuple[Path, ...], where: str) -> None:
    try:
        target = path.resolve()
    except (OSError, RuntimeError):
        raise UnsafeError(f"{shown(path.name)} of {where} is a link in a circle", hint="remove it") from None
    if not any(target.is_relative_to(home) for home in homes):
        raise UnsafeError(
            f"{shown(path.name)} of {where} is a link that leads out of the folder",
            hint="put a copy of the file in its place",
        )


def _size(path: Path, where: str) -> int:
    try:
        status = path.stat()
    except OSError:
        raise SourceError(f"{shown(path.name)} of {where} cannot be read", hint="get the file again") from None
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeError(f"{shown(path.name)} of {where} is no ordinary file", hint="remove it")
    return status.st_size
