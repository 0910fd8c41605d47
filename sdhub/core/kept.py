"""A second place for finished stages, which outlives this machine: the folder that `SDHUB_KEEP` names, if any.

It may be the mount of a bucket, so nothing is asked of it but to take whole files: no locks, no renames. The files
of a stage come first, then `<stage>/<key>.json` with their sizes; where that is missing or a size is another, the
stage is not there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from sdhub.core.progress import Progress


def make_or_restore(stage: str, key: str, out: Path, make: Callable[[Path], None], progress: Progress) -> None:
    """Fill the empty folder `out` with what is kept of a stage, else by `make`, and keep that."""
    chosen = os.environ.get("SDHUB_KEEP")
    if not chosen:
        make(out)
        return
    place = Path(chosen) / stage / key
    if _restore(place, out):
        progress.note("  kept from an earlier job")
        return
    make(out)
    try:
        _keep(out, place)
    except OSError as error:  # the work itself is not to blame
        progress.note(f"  this cannot be kept for a later job: {error.strerror or error}")


def _mark(place: Path) -> Path:
    return place.with_name(f"{place.name}.json")


def _keep(folder: Path, place: Path) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        copy = place / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    place.parent.mkdir(parents=True, exist_ok=True)
    _mark(place).write_text(json.dumps(sizes), encoding="utf-8")


def _restore(place: Path, out: Path) -> bool:
    try:
        sizes = json.loads(_mark(place).read_text(encoding="utf-8"))
        for name, size in sizes.items():
            copy = out / name
            if not copy.resolve().is_relative_to(out.resolve()):
                raise ValueError(name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place / name, copy)
            if copy.stat().st_size != size:
                raise ValueError(name)
    except (OSError, ValueError, AttributeError):
        shutil.rmtree(out)
        out.mkdir()
        return False
    return True
