"""The folder that becomes a repository: the variant with its recipe, evidence, packages, card and provenance."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdhub.checkpoint.checkpoint import License
from sdhub.core.errors import BuildError
from sdhub.core.progress import SILENT, Progress
from sdhub.core.work import canonical
from sdhub.publishing.card import card
from sdhub.publishing.package import Package, pack, regular_files, sha256_of, sums
from sdhub.publishing.publication import Publication

MANIFEST = "sdhub.json"
_RESERVED = {"readme.md", "recipe.json", MANIFEST, "evidence", "packages", ".gitattributes", ".git"}
_BUNDLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.zip")
_FIGURES = ("identical", "psnr_db", "ssim", "latent_psnr_db", "bytes", "base_bytes", "latency")
_PICTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.png")


def assemble(publication: Publication, out: Path, *, progress: Progress = SILENT) -> tuple[Package, ...]:
    """Fill the empty folder `out` with the whole repository and return its packages.

    Layout: the variant's files, `recipe.json` (canonical JSON), the licence text,
    `evidence/` (evidence.json, contact_sheet.png, pictures), `packages/` (a zip and SHA256SUMS), the
    zips of `bundles`, `README.md` and `sdhub.json`. The same publication gives the same bytes. Variant files are
    hard links where the file system allows it. Raises BuildError for a file that would be overwritten,
    UnsafeError for a link.
    """
    if any(out.iterdir()):
        raise BuildError(f"{out} is not empty")
    _place_variant(publication, out)
    (out / "recipe.json").write_bytes(canonical(publication.recipe_document))
    if publication.license_file and publication.license_target:
        shutil.copyfile(publication.license_file, out / publication.license_target)
    for notice in publication.notices:
        shutil.copyfile(notice, out / notice.name)
    packages = (_package(publication, out, progress),)
    bundles = _bundle(publication, out, progress)
    _place_evidence(publication, out / "evidence")
    (out / "README.md").write_text(card(publication, packages, bundles), encoding="utf-8", newline="\n")
    (out / MANIFEST).write_bytes(pretty(_manifest(publication, packages, bundles, out)))
    return packages


def read_manifest(folder: Path) -> dict[str, Any]:
    """The `sdhub.json` of an assembled folder."""
    document: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    return document


def figures_of(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of an evidence document that stand in `sdhub.json`, and beside those of other variants."""
    return {name: evidence.get(name) for name in _FIGURES}


def pretty(document: Any) -> bytes:
    """JSON for people: indented, sorted keys, UTF-8, one newline at the end, no NaN."""
    text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode("utf-8", "backslashreplace")


def _place_variant(publication: Publication, out: Path) -> None:
    terms = {publication.license_target or "README.md", *(notice.name for notice in publication.notices)}
    reserved = _RESERVED | {name.lower() for name in terms}
    for name, path in regular_files(publication.folder).items():
        if name.split("/")[0].lower() in reserved:
            raise BuildError(f"the variant holds {name}, which sdhub writes itself")
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)  # another file system, or one without hard links


def _place_evidence(publication: Publication, folder: Path) -> None:
    folder.mkdir()
    (folder / "evidence.json").write_bytes(pretty(publication.evidence))
    if publication.contact_sheet:
        shutil.copyfile(publication.contact_sheet, folder / "contact_sheet.png")
    for name, path in sorted(publication.pictures.items()):
        if not _PICTURE.fullmatch(name) or name == "contact_sheet.png":
            raise BuildError(f"{name[:80]!r} is no name for a picture", hint="letters, digits and .png")
        shutil.copyfile(path, folder / name)


def _package(publication: Publication, out: Path, progress: Progress) -> Package:
    staged = out.parent / f".{out.name}.package"
    staged.mkdir()
    try:
        package = pack(out, staged / f"{publication.name}.zip", progress=progress)
        (staged / "SHA256SUMS").write_text(sums([package]), newline="\n")
        staged.rename(out / "packages")
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return package


def _bundle(publication: Publication, out: Path, progress: Progress) -> tuple[Package, ...]:
    """The zips that apps look for at the top of the repository."""
    packed = []
    for name, folder in sorted(publication.bundles.items()):
        if not _BUNDLE.fullmatch(name) or (out / name).exists():
            raise BuildError(f"{name[:80]!r} is no name for a zip", hint="letters, digits and .zip")
        if not folder.resolve().is_relative_to(publication.folder.resolve()) or not folder.is_dir():
            raise BuildError(f"{folder} is no folder of the variant, so that {name} cannot be made")
        packed.append(pack(folder, out / name, progress=progress))
    return tuple(packed)


def _manifest(
    publication: Publication, packages: tuple[Package, ...], bundles: tuple[Package, ...], out: Path
) -> Mapping[str, Any]:
    checkpoint = publication.checkpoint
    return {
        "version": 1,
        "variant": publication.variant,
        "terms": sorted(filter(None, [publication.license_target, *(each.name for each in publication.notices)])),
        "source": {
            "kind": checkpoint.source.kind,
            "id": checkpoint.id,
            "sha": checkpoint.sha,
            "identity": publication.identity,
            "family": checkpoint.family.name,
            "license": publication.license.id,
            "gated": checkpoint.gated,
            "private": checkpoint.private,
            "loras": [
                {"ref": lora.name, "sha": lora.sha, "scale": lora.scale, **_stated(lora.license)}
                for lora in checkpoint.loras
            ],
            "companions": [
                {
                    "kind": each.kind,
                    "ref": each.name,
                    "sha": each.sha,
                    "license": each.license.id if each.license else None,
                }
                for each in checkpoint.companions
            ],
        },
        "recipe_sha256": publication.recipe_sha256,
        "versions": dict(publication.versions),
        "evidence": figures_of(publication.evidence),
        "packages": [vars(each) for each in packages],
        "bundles": [vars(each) for each in bundles],
        "files": {
            name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for name, path in regular_files(out).items()
        },
    }


def _stated(license: License | None) -> dict[str, str]:
    return {"license": license.id} if license else {}
