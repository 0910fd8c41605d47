"""Checking a published variant on this machine: what its provenance says, and that it draws what it shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from sdhub.core.device import AUTO, CPU, resolve, vet_word
from sdhub.core.endpoint import connect
from sdhub.core.errors import CheckError, MissingExtraError, SdhubError, SourceError
from sdhub.core.isolated import run_isolated
from sdhub.core.progress import SILENT, Progress
from sdhub.core.scratch import temporary
from sdhub.evidence.sampling import evidence_sampling
from sdhub.publishing.check import ALIKE_DB, likeness
from sdhub.publishing.download import download
from sdhub.publishing.verify import Finding, verify_folder
from sdhub.workflow.variants import vet_folder

PICTURES = 1
Where: TypeAlias = "tuple[str, str | None]"


@dataclass(frozen=True)
class Verified:
    """What was checked of a repository at a commit (None for a folder)."""

    repo: str
    commit: str | None
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether no check failed."""
        return all(each.status != "failed" for each in self.findings)

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        checks = [each.document() for each in self.findings]
        return {"repo": self.repo, "commit": self.commit, "sound": self.sound, "checks": checks}


def verify(
    repo: str,
    *,
    hub: str | None = None,
    revision: str | None = None,
    pictures: int = PICTURES,
    device: str = AUTO,
    runtime_device: str | None = None,
    progress: Progress = SILENT,
) -> Verified:
    """Download a repository (or take a folder), check it as `verify_folder` does, and draw again.

    The first `pictures` prompts of the evidence are drawn by the variant on this machine, and must look like
    the evidence's pictures; where the backend is not installed, that is skipped and said. `device` and
    `runtime_device`: as in `load`. Raises SourceError, HubError, UsageError for a device that is not there, and
    CheckError where there is no `sdhub.json`.
    """
    vet_word(device)
    where = (device if device in (AUTO, CPU) else str(resolve(device)), runtime_device)
    if Path(repo).is_dir():
        return Verified(repo, None, _findings(Path(repo), pictures, where, progress))
    if repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        raise SourceError(f"{repo}: no such folder", hint="name a variant's repository as NAMESPACE/NAME")
    with connect(hub) as at, temporary("verify") as place:
        folder = place / "repository"
        commit = download(repo, folder, hub=at, revision=revision, progress=progress)
        return Verified(repo, commit, _findings(folder, pictures, where, progress))


def _findings(folder: Path, pictures: int, where: Where, progress: Progress) -> tuple[Finding, ...]:
    findings = verify_folder(folder, gate=vet_folder, progress=progress)
    faulty = next((each.name for each in findings if each.status == "failed"), None)
    if not pictures:
        drawn = Finding("drawing", "skipped", "not asked for")
    elif faulty:
        drawn = Finding("drawing", "skipped", f"{faulty} failed")
    else:
        drawn = _drawing(folder, pictures, where, progress)
    return (*findings, drawn)


def _drawing(folder: Path, pictures: int, where: Where, progress: Progress) -> Finding:
    with temporary("verify") as place:
        try:
            run_isolated(draw_again, folder, pictures, where, place, progress=progress)
        except MissingExtraError as error:
            return Finding("drawing", "skipped", f"{error.message}: {error.hint}")
        except SdhubError as error:
            return Finding("drawing", "failed", error.message)
        drawn = sorted(place.glob("*.png"))
        try:
            found = [likeness(str(folder), folder / "evidence" / f"variant-{each.name}", each) for each in drawn]
        except CheckError as error:
            return Finding("drawing", "failed", error.message)
    least = min(found)
    alike = "identical" if math.isinf(least) else f"PSNR at least {least:.1f} dB"
    said = f"{len(found)} of the evidence's pictures drawn again, {alike}"
    if least < ALIKE_DB:
        return Finding("drawing", "failed", f"draws another picture than its evidence shows (PSNR {least:.1f} dB)")
    return Finding("drawing", "passed", said)


def draw_again(folder: Path, pictures: int, where: Where, out: Path, progress: Progress) -> None:
    """Draw the first prompts of a variant's evidence into `out` as `00.png`, `01.png`, …; `where`: the devices of
    torch and of the variant's runtime."""
    from dataclasses import replace

    from sdhub.core.quiet import quiet
    from sdhub.evidence.samples import save_png
    from sdhub.workflow.measure import draw_all
    from sdhub.workflow.variants import backend_of_folder

    sampling = evidence_sampling(folder)
    if sampling is None:
        raise SourceError("there is no evidence to draw again")
    with quiet():
        pipe = backend_of_folder(folder).open(folder, *where)
    wanted = replace(sampling, prompts=sampling.prompts[:pictures])
    for position, sample in enumerate(draw_all(pipe, wanted, progress)):
        save_png(out / f"{position:02d}.png", sample.image)
