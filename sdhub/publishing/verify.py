"""Whether a published folder is what its `sdhub.json` says: every hash, the recipe, the packages, the figures.

The folder comes from a stranger: its JSON is bounded and read strictly, nothing in it is run.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdhub.checkpoint.safety import is_code
from sdhub.core.documents import parse_object, shown
from sdhub.core.errors import CheckError, SdhubError
from sdhub.core.progress import SILENT, Progress, Task
from sdhub.publishing.package import CHUNK, regular_files, sha256_of
from sdhub.publishing.repository import MANIFEST
from sdhub.publishing.words import number

MAX_JSON = 16 * 2**20
MAX_PICTURE_SIDE = 8192
OF_THE_HUB = frozenset({".gitattributes"})
SHA256 = re.compile(r"[0-9a-f]{64}")
NOT_OF_THE_VARIANT = re.compile(
    r"(recipe\.json|README\.md|sdhub\.json|LICENSE(\.md|\.txt)?|(evidence|packages)/.+)"
)
ROUNDING = 1 / 255  # what 8 bits can add to, or take from, the root mean square of a difference
SSIM_ROUNDING = 0.02
SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """What came of one check."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    detail: str

    def document(self) -> dict[str, str]:
        """The JSON form."""
        return dict(vars(self))


class _Fault(Exception):
    """A check found something; the text says what."""


@dataclass(frozen=True)
class Entry:
    """What `sdhub.json` says of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `sdhub.json` says: the variant's name, its recipe's hash, and the files.

    `beside`: those at the top that are not of the variant (bundles, licence, notices); `compiled`: those of them
    that were compiled elsewhere, and hold other bytes than the repository.
    """

    variant: str
    recipe_sha256: str
    files: Mapping[str, Entry]
    beside: frozenset[str]
    compiled: frozenset[str] = frozenset()


def read(folder: Path) -> Manifest:
    """The `sdhub.json` of a stranger's folder. Raises CheckError where it is none."""
    try:
        document = parse_object(_bytes(folder / MANIFEST), MANIFEST)
        files = {str(name): _entry(entry) for name, entry in document["files"].items()}
        beside = {str(each["name"]) for each in document.get("bundles", [])} | set(
            map(str, document.get("terms", []))
        )
        compiled = frozenset(str(each["name"]) for each in document.get("compiled", []))
        return Manifest(
            str(document["variant"]), str(document["recipe_sha256"]), files, frozenset(beside | compiled), compiled
        )
    except _Fault as fault:
        raise CheckError(f"{MANIFEST} {fault}", hint="was this published by sdhub?") from None
    except (SdhubError, KeyError, TypeError, AttributeError) as error:
        reason = error.message if isinstance(error, SdhubError) else f"is not as sdhub writes it ({shown(error)})"
        raise CheckError(f"{MANIFEST}: {reason}", hint="was this published by sdhub?") from None


def verify_folder(folder: Path, *, gate: Callable[[Path], object], progress: Progress = SILENT) -> list[Finding]:
    """Check a downloaded repository against its own `sdhub.json`, each check on its own.

    `gate` is what a variant has to pass before anything loads it, and raises where it does not.

    `files`: the same names, sizes and SHA-256, and nothing else there. `recipe`: valid, and of the stated hash.
    `packages`: the zips hold the repository's own bytes. `figures`: the evidence's figures follow from its
    pictures and files. `code`: nothing there that a loader could run. Raises CheckError without a manifest.
    """
    manifest = read(folder)
    files = regular_files(folder)
    total = sum(path.stat().st_size for path in files.values())
    with progress.task("verifying", total=2 * total, unit="B") as task:
        checks: dict[str, Callable[[], str]] = {
            "files": lambda: _files(manifest, files, task),
            "recipe": lambda: _recipe(manifest, folder),
            "packages": lambda: _packages(manifest, files, task),
            "figures": lambda: _figures(manifest, folder),
            "code": lambda: _code(folder, files, gate),
        }
        return [_finding(name, run) for name, run in checks.items()]


def _finding(name: str, run: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "passed", run())
    except _Fault as fault:
        return Finding(name, "failed", str(fault))
    except SdhubError as error:
        return Finding(name, "failed", error.message)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return Finding(name, "failed", f"cannot be read: {shown(error, 300)}")


def _entry(document: Mapping[str, Any]) -> Entry:
    size, sha256 = document["bytes"], document["sha256"]
    if type(size) is not int or size < 0 or not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise _Fault("has an entry without a size or hash")
    return Entry(size, sha256)


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise _Fault("is not there")
    if path.stat().st_size > MAX_JSON:
        raise _Fault(f"has more than {MAX_JSON} bytes")
    return path.read_bytes()


def _files(manifest: Manifest, files: Mapping[str, Path], task: Task) -> str:
    there = set(files) - OF_THE_HUB - {MANIFEST}
    for fault, names in (
        ("missing", set(manifest.files) - there - OF_THE_HUB),
        (f"not listed in {MANIFEST}", there - set(manifest.files)),
        ("altered", set(_altered(manifest, files, task))),
    ):
        if names:
            raise _Fault(f"{len(names)} {fault}: {_named(names)}")
    total = sum(entry.bytes for entry in manifest.files.values())
    return f"{len(manifest.files)} files, {total} bytes, every SHA-256 as stated"


def _altered(manifest: Manifest, files: Mapping[str, Path], task: Task) -> Iterator[str]:
    for name, entry in manifest.files.items():
        path = files.get(name)
        if path is None:
            continue
        size = path.stat().st_size
        if size != entry.bytes or sha256_of(path) != entry.sha256:
            yield name
        task.advance(size)


def _recipe(manifest: Manifest, folder: Path) -> str:
    from sdhub.recipes.recipe import identity, parse_recipe

    raw = _bytes(folder / "recipe.json")
    recipe = parse_recipe(raw, origin="recipe.json")
    if identity(json.loads(raw)) != manifest.recipe_sha256:
        raise _Fault("recipe.json has another hash than stated")
    if recipe.name != manifest.variant:
        raise _Fault(f"recipe.json makes {recipe.name}, and the variant is {shown(manifest.variant)}")
    return f"{recipe.name}, SHA-256 {manifest.recipe_sha256}"


def _packages(manifest: Manifest, files: Mapping[str, Path], task: Task) -> str:
    zips = [name for name in files if name.startswith("packages/") and name.endswith(".zip")]
    zips += [name for name in files if name in manifest.beside - manifest.compiled and name.endswith(".zip")]
    if not zips:
        raise _Fault("there is none")
    count = sum(_package(manifest, files[name], task) for name in zips)
    return f"{len(zips)} zipped, with {count} files of the repository's bytes"


def _package(manifest: Manifest, path: Path, task: Task) -> int:
    """Files in a zip of ours: stored, below one top folder, each as in `sdhub.json` from some folder on."""
    known: dict[str, set[str]] = {}
    for name, entry in manifest.files.items():
        parts = name.split("/")
        for start in range(len(parts)):
            known.setdefault("/".join(parts[start:]), set()).add(entry.sha256)
    try:
        with zipfile.ZipFile(path) as zipped:
            entries = zipped.infolist()
            for each in entries:
                top, _, name = each.filename.partition("/")
                stored = each.compress_type == zipfile.ZIP_STORED and each.file_size <= path.stat().st_size
                if top != path.stem or not stored or _sha256_in(zipped, each, task) not in known.get(name, ()):
                    raise _Fault(f"{path.name} holds {shown(each.filename)!r}, which is not the repository's")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise _Fault(f"{path.name} is no sound zip: {shown(error, 300)}") from None
    return len(entries)


def _sha256_in(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo, task: Task) -> str:
    found = hashlib.sha256()
    with zipped.open(entry) as stream:
        while block := stream.read(CHUNK):
            found.update(block)
            task.advance(len(block))
    return found.hexdigest()


def _figures(manifest: Manifest, folder: Path) -> str:
    evidence = parse_object(_bytes(folder / "evidence" / "evidence.json"), "evidence.json")
    rows = evidence["prompts"]
    if not rows:
        raise _Fault("there is no picture")
    for position, row in enumerate(rows):
        _row(folder / "evidence", position, row)
    pooled = sum(_error(row) for row in rows) / len(rows)
    if not math.isclose(pooled, _error(evidence), rel_tol=0.01, abs_tol=1e-9):
        raise _Fault("the PSNR over all pictures does not follow from those of each")
    mean = sum(float(row["ssim"]) for row in rows) / len(rows)
    if abs(mean - float(evidence["ssim"])) > 1e-4:
        raise _Fault("the SSIM over all pictures is not the mean of each")
    variant = [name for name in manifest.files if not NOT_OF_THE_VARIANT.fullmatch(name)]
    size = sum(manifest.files[name].bytes for name in set(variant) - manifest.beside - OF_THE_HUB)
    if size != evidence["bytes"]:
        raise _Fault(f"the variant has {size} bytes, and the evidence says {evidence['bytes']}")
    return f"PSNR and SSIM of {len(rows)} pictures and the size follow from the files"


def _row(folder: Path, position: int, row: Mapping[str, Any]) -> None:
    """Recompute one picture's figures from the PNGs, which are rounded to 8 bits."""
    import numpy as np

    from sdhub.evidence.metrics import ssim

    base, variant = (_picture(folder / f"{side}-{position:02d}.png") for side in ("base", "variant"))
    if base.shape != variant.shape:
        raise _Fault(f"picture {position} has two sizes")
    found = math.sqrt(float(np.mean((base - variant) ** 2)))
    if abs(found - math.sqrt(_error(row))) > ROUNDING:
        raise _Fault(f"picture {position} does not have the PSNR that is stated")
    if abs(ssim(base, variant) - float(row["ssim"])) > SSIM_ROUNDING:
        raise _Fault(f"picture {position} does not have the SSIM that is stated")


def _picture(path: Path) -> Any:
    """A PNG as float64 (H, W, 3) in [0, 1]."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            if max(image.size) > MAX_PICTURE_SIDE:
                raise _Fault(f"{path.name} has {image.size} pixels")
            return np.asarray(image.convert("RGB"), np.float64) / 255
    except (SyntaxError, Image.DecompressionBombError) as error:
        raise _Fault(f"{path.name} does not open: {shown(error, 300)}") from None


def _error(figures: Mapping[str, Any]) -> float:
    """The mean squared error that a PSNR in dB stands for; null is infinite where pictures are identical."""
    known = number(figures.get("psnr_db"))
    if known is None:
        if figures.get("identical") is not True:
            raise _Fault("a PSNR is not stated")
        return 0.0
    return float(10 ** (-known / 10))


def _code(folder: Path, files: Mapping[str, Path], gate: Callable[[Path], object]) -> str:
    """Loaders see what the gate passes, and a repository with code beside it is no variant of ours either."""
    for name in files:
        if is_code(name):
            raise _Fault(f"{shown(name)} could run code")
    gate(folder)
    return "no pickle, no code, and nothing but what its kind of variant has"


def _named(names: set[str]) -> str:
    listed = ", ".join(shown(name) for name in sorted(names)[:SHOWN])
    return listed if len(names) <= SHOWN else f"{listed}, …"
