"""Compiled Core ML bundles (`.mlmodelc`), which Apple's Swift apps load: made from a published variant on a Mac.

Apple's compiler is on macOS alone, so this is a job of its own after publishing. It downloads the variant,
compiles its packages, and adds a zip for each attention (`<repository>_<attention>_compiled.zip`: the bundles,
named as Apple's apps ask for them, `vocab.json` and `merges.txt`) and the same as `<attention>/compiled/`, to the
card and `sdhub.json` too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdhub.backends.coreml.specs import bundle_of
from sdhub.core.errors import BuildError, CheckError, UnsupportedError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.core.scratch import temporary
from sdhub.publishing.download import download
from sdhub.publishing.markdown import cell, link
from sdhub.publishing.package import Package, pack, sha256_of
from sdhub.publishing.push import Pushed, push
from sdhub.publishing.repository import MANIFEST, pretty, read_manifest
from sdhub.publishing.verify import verify_folder
from sdhub.publishing.words import size
from sdhub.workflow.variants import vet_folder

COMPILER = ("xcrun", "coremlcompiler", "compile")
SECONDS = 1800
SIZELESS = ("TextEncoder", "TextEncoder2")
COMPILED = "compiled"
WORDS = ("vocab.json", "merges.txt")
BEGIN, END = "<!-- compiled -->", "<!-- /compiled -->"
_SECTION = re.compile(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", re.DOTALL)
_NOT_YET = re.compile(r"^- [^\n]*mlmodelc[^\n]*not in this repository yet[^\n]*\n", re.MULTILINE)


def add_compiled(
    repo_id: str,
    *,
    hub: Hub,
    create_pr: bool = False,
    compiler: Sequence[str] = COMPILER,
    progress: Progress = SILENT,
) -> Pushed:
    """Compile the packages of a published variant and add them to its repository, in one commit.

    Raises UnsupportedError where there is no compiler, CheckError where the repository is not what its
    `sdhub.json` says, BuildError for a package that does not compile, HubError.
    """
    if shutil.which(compiler[0]) is None:
        raise UnsupportedError(f"{compiler[0]} is not here", hint="compile on macOS, with Xcode's tools")
    with temporary("compile") as work:
        folder = work / "repository"
        download(repo_id, folder, hub=hub, progress=progress)
        for finding in verify_folder(folder, gate=vet_folder):
            if finding.name in ("files", "code") and finding.status == "failed":
                raise CheckError(f"{repo_id} is not what it says it is: {finding.detail}", hint="publish it again")
        made = compile_folder(folder, repo_id.partition("/")[2], work, compiler, progress)
        describe(folder, made)
        return push(
            folder,
            repo_id,
            hub=hub,
            create_pr=create_pr,
            message="Compiled bundles for Apple's Swift apps",
            progress=progress,
        )


def compile_folder(
    folder: Path, name: str, work: Path, compiler: Sequence[str] = COMPILER, progress: Progress = SILENT
) -> list[Package]:
    """Put compiled bundles beside each `*/packages` of a variant's folder, and a zip of them at its top.

    Models of a size of their own come with the shared ones in a zip of their own. Raises UnsupportedError where
    there are no packages, BuildError where one does not compile.
    """
    places = sorted(folder.glob("*/packages"))
    if not places:
        raise UnsupportedError(f"{name} has no Core ML packages")
    made = []
    for place in places:
        compiled = work / "compiled" / place.parent.name
        compiled.mkdir(parents=True)
        found = {package: bundle_of(package.stem) for package in sorted(place.glob("*.mlpackage"))}
        for package in found:
            _compile(package, compiled, compiler, progress)
        for sides in sorted({sides for _, sides in found.values()}):
            stem = "_".join(filter(None, (name, place.parent.name, sides, "compiled")))
            out = work / "bundles" / stem
            for package, (bundle, own) in found.items():
                if own == sides or bundle in SIZELESS:
                    shutil.copytree(compiled / f"{package.stem}.mlmodelc", out / f"{bundle}.mlmodelc")
            for words in WORDS:
                if (place / words).is_file():
                    shutil.copyfile(place / words, out / words)
            made.append(pack(out, folder / f"{stem}.zip", progress=progress))
            if not sides:
                shutil.copytree(out, place.parent / COMPILED, dirs_exist_ok=True)
    return made


def _compile(package: Path, out: Path, compiler: Sequence[str], progress: Progress) -> None:
    with progress.task(f"compiling {package.stem}"):
        done = subprocess.run(  # noqa: S603 — Apple's compiler
            [*compiler, str(package), str(out)], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    if done.returncode or not (out / f"{package.stem}.mlmodelc").is_dir():
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise BuildError(f"{package.name} does not compile: {said or f'exit code {done.returncode}'}")


def describe(folder: Path, made: Sequence[Package]) -> None:
    """Say on the card and in `sdhub.json` what was added; a second time gives the same files."""
    card = folder / "README.md"
    card.write_text(_described(card.read_text(encoding="utf-8"), made), encoding="utf-8", newline="\n")
    manifest = read_manifest(folder)
    names = {each.name for each in made}
    files: dict[str, Any] = dict(manifest["files"])
    inside = (path for path in folder.glob(f"*/{COMPILED}/**/*") if path.is_file())
    bundles = [path.relative_to(folder).as_posix() for path in inside]
    for name in (card.name, *sorted(names), *sorted(bundles)):
        path = folder / name
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest |= {"compiled": [vars(each) for each in made], "files": files}
    (folder / MANIFEST).write_bytes(pretty(manifest))


def _described(card: str, made: Sequence[Package]) -> str:
    rows = "\n".join(
        f"| {link(cell(each.name), each.name)} | {size(each.bytes)} | {cell(each.sha256)} |" for each in made
    )
    table = f"| Bundle | Size | SHA-256 |\n|---|---:|---|\n{rows}"
    section = f"{BEGIN}\n\nCompiled for Apple's Swift apps:\n\n{table}\n\n{END}"
    text = _NOT_YET.sub("", _SECTION.sub("\n\n", card))
    before, heading, after = text.partition("\n## Packages\n")
    if not heading:
        return f"{text.rstrip()}\n\n{section}\n"
    body, following, rest = after.partition("\n## ")
    return f"{before}{heading}{body.rstrip()}\n\n{section}\n{following}{rest}"
