"""The files of the Spaces that sdhub deploys."""

from __future__ import annotations

from pathlib import Path

from sdhub.core.beside import folder_beside

COMMON = "common"  # a folder of what all of them have
IGNORED = {"__pycache__", ".DS_Store"}


def space_files(name: str) -> dict[str, bytes]:
    """The files of the Space `demo` or `publisher` by path: beside the package in a checkout, inside it else."""
    spaces = folder_beside("spaces")
    return {**_files(spaces / COMMON), **_files(spaces / name)}


def _files(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in found
        if not IGNORED & set(path.relative_to(folder).parts) and path.suffix != ".pyc"
    }
