"""Packages: reproducible zips of a folder, and their safe unpacking.

The rules are those of DDUF (stored, sorted, one folder deep at the top) with fixed times and permissions, so
that the same folder gives the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import stat
import unicodedata
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sdhub.core.errors import UnsafeError
from sdhub.core.progress import SILENT, Progress, Task
from sdhub.core.scratch import temporary
from sdhub.core.units import GIB

EPOCH = (1980, 1, 1, 0, 0, 0)
UNIX = 3
MODE = 0o100644
CHUNK = 2**20


@dataclass(frozen=True)
class Package:
    """A zip: file name, bytes, SHA-256 in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Limits:
    """What `unpack` accepts: entries, bytes in all, and bytes per compressed byte."""

    entries: int = 100_000
    bytes: int = 256 * GIB
    ratio: float = 200.0


def pack(folder: Path, archive: Path, *, progress: Progress = SILENT) -> Package:
    """Zip a folder's files under one top folder named as the archive's stem.

    Raises UnsafeError for a link or a special file.
    """
    files = regular_files(folder)
    partial = archive.with_name(f".{archive.name}.partial")
    total = sum(path.stat().st_size for path in files.values())
    try:
        with (
            progress.task(f"packing {archive.name}", total=total, unit="B") as task,
            zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as zipped,
        ):
            for name, path in files.items():
                _store(zipped, f"{archive.stem}/{name}", path, task)
        partial.replace(archive)
    finally:
        partial.unlink(missing_ok=True)
    return Package(archive.name, archive.stat().st_size, sha256_of(archive))


def regular_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by relative POSIX path, sorted. Raises UnsafeError for a link or special file."""
    found = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            found[path.relative_to(folder).as_posix()] = path
        elif not stat.S_ISDIR(mode):
            raise UnsafeError(f"{path} is a link or a special file", hint="put the file itself there")
    return dict(sorted(found.items()))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def sums(packages: Iterable[Package]) -> str:
    """`SHA256SUMS` in the format of GNU coreutils: `sha256sum -c SHA256SUMS` verifies the packages."""
    return "".join(f"{each.sha256}  {each.name}\n" for each in packages)


def unpack(archive: Path, folder: Path, *, limits: Limits | None = None, progress: Progress = SILENT) -> None:
    """Unpack a zip from a stranger into `folder`, which must not exist or be empty.

    Raises UnsafeError naming the entry that is absolute, climbs out, is a link, a duplicate (also of another
    case or normal form), encrypted, too large or too densely compressed; and for a damaged archive. Nothing
    is left of a refused one.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UnsafeError(f"{folder} is not empty", hint="unpack into a new folder")
    with temporary(beside=folder) as partial:
        try:
            with zipfile.ZipFile(archive) as zipped:
                entries = zipped.infolist()
                _accept(archive, entries, limits or Limits())
                with progress.task(
                    f"unpacking {archive.name}", total=sum(entry.file_size for entry in entries), unit="B"
                ) as task:
                    for entry in entries:
                        _extract(zipped, entry, partial, task)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
            raise UnsafeError(f"{archive.name} is no sound zip: {_line(error)}") from None
        partial.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)


def _store(zipped: zipfile.ZipFile, name: str, path: Path, task: Task) -> None:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.create_system = UNIX
    entry.external_attr = MODE << 16
    entry.file_size = path.stat().st_size  # decides zip64
    with path.open("rb") as stream, zipped.open(entry, "w") as out:
        _copy(stream, out, task)


def _extract(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, task: Task) -> None:
    target = folder / entry.filename
    if entry.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipped.open(entry) as stream, target.open("xb") as out:
        _copy(stream, out, task)


def _copy(stream: IO[bytes], out: IO[bytes], task: Task) -> None:
    while block := stream.read(CHUNK):
        out.write(block)
        task.advance(len(block))


def _accept(archive: Path, entries: list[zipfile.ZipInfo], limits: Limits) -> None:
    if len(entries) > limits.entries:
        raise UnsafeError(f"{archive.name} has {len(entries)} entries, more than {limits.entries}")
    taken: dict[str, tuple[str, str]] = {}
    for entry in entries:
        fault = _fault(entry, limits) or _clash(entry, taken)
        if fault:
            raise UnsafeError(f"{archive.name}: entry {entry.orig_filename[:120]!r} {fault}")
    unpacked, packed = (
        sum(getattr(entry, field) for entry in entries) for field in ("file_size", "compress_size")
    )
    if unpacked > limits.bytes:
        raise UnsafeError(f"{archive.name} unpacks to {unpacked} bytes, more than {limits.bytes}")
    if packed > archive.stat().st_size:
        raise UnsafeError(f"{archive.name} has entries that overlap")


def _fault(entry: zipfile.ZipInfo, limits: Limits) -> str | None:
    name = entry.orig_filename
    parts = name.removesuffix("/").split("/")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.flag_bits & 0x2041:
        return "is encrypted"
    if any(unicodedata.category(char)[0] == "C" for char in name) or any(char in '\\:*?"<>|' for char in name):
        return "has a character that file names must not have"
    if name.startswith("/") or any(part in {"", ".", ".."} for part in parts):
        return "is absolute or leaves its folder"
    if any(part != part.rstrip(". ") or len(part.encode()) > 255 for part in parts) or len(parts) > 64:
        return "is a name that not every file system keeps"
    if kind not in {0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG}:
        return "is a link or a special file"
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return "is compressed in an unusual way"
    if entry.file_size > limits.ratio * max(entry.compress_size, 1) and entry.file_size > CHUNK:
        return f"unpacks to more than {limits.ratio:g} times its size"
    return None


def _clash(entry: zipfile.ZipInfo, taken: dict[str, tuple[str, str]]) -> str | None:
    """Whether an entry is there twice, or a file system that folds case would mix it up with an earlier one."""
    parts = entry.filename.removesuffix("/").split("/")
    for depth in range(1, len(parts) + 1):
        path = "/".join(parts[:depth])
        kind = "file" if depth == len(parts) and not entry.is_dir() else "folder"
        known = taken.setdefault(unicodedata.normalize("NFKC", path).casefold(), ("", path))
        if known[0] and (kind == "file" or known != (kind, path)):
            return f"is there twice, or clashes with {known[1][:120]!r}"
        taken[unicodedata.normalize("NFKC", path).casefold()] = (kind, path)
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
