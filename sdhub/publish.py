"""The main job, start to end: from a checkpoint to published, verified variants.

inspect → plan → gates → for each variant: build → measure → card and packages → push → check

Every stage's result is kept in the work folder under a key of its inputs, so that a run that was cut off goes
on where it stopped, and a run that changes nothing does nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdhub.checkpoint.checkpoint import Checkpoint, License
from sdhub.checkpoint.fetch import fingerprint
from sdhub.endpoint import Endpoint, connect, endpoint
from sdhub.errors import EvidenceError, SdhubError
from sdhub.evidence.sampling import Sampling
from sdhub.plan import AS_IT_IS, Plan, PlannedVariant, make_plan, sampling_for
from sdhub.progress import SILENT, Progress
from sdhub.publishing import license as licensing
from sdhub.publishing.access import check_token
from sdhub.publishing.check import check
from sdhub.publishing.privacy import target_private
from sdhub.publishing.publication import Publication
from sdhub.publishing.push import Pushed, push, vet_target
from sdhub.publishing.repository import assemble, read_manifest
from sdhub.recipes.adjust import Adjustment
from sdhub.stages import Base, VariantStages, license_file
from sdhub.usage import usage
from sdhub.work import Work, home


@dataclass(frozen=True)
class Options:
    """How to publish. `namespace` None is the token's own; `sampling` None is what suits the checkpoint."""

    namespace: str | None = None
    variants: tuple[str, ...] = ()
    recipe: Path | None = None
    license: str | None = None
    private: bool = False
    allow_public: bool = False
    create_pr: bool = False
    sampling: Sampling | None = None
    adjustment: Adjustment = AS_IT_IS


@dataclass(frozen=True)
class Job:
    """A plan that passed all gates, with the Hub it goes to; nothing is done yet."""

    plan: Plan
    options: Options
    license: License
    hub: Endpoint

    @property
    def private(self) -> bool:
        """Whether the target repositories have to be private."""
        options = self.options
        return target_private(self.plan.checkpoint, private=options.private, allow_public=options.allow_public)


@dataclass(frozen=True)
class Published:
    """What became of one variant: "published", "unchanged", "proposed" or "failed" with the reason."""

    name: str
    repo: str
    recipe_sha256: str
    status: str
    reason: str | None = None
    url: str | None = None
    commit: str | None = None
    pull_request: str | None = None
    uploaded_bytes: int = 0
    evidence: dict[str, Any] = field(default_factory=dict)
    packages: tuple[dict[str, Any], ...] = ()
    folder: Path | None = None
    error: SdhubError | None = None

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        evidence = self.evidence
        shown = {name: evidence.get(name) for name in ("psnr_db", "ssim", "latent_psnr_db")}
        shown["latency_ratio"] = (evidence.get("latency") or {}).get("ratio")
        shown["peak_mib"] = evidence.get("peak_mib")
        return {
            "name": self.name,
            "repo": self.repo,
            "url": self.url,
            "commit": self.commit,
            "pull_request": self.pull_request,
            "status": self.status,
            "reason": self.reason,
            "bytes": evidence.get("bytes"),
            "base_bytes": evidence.get("base_bytes"),
            "uploaded_bytes": self.uploaded_bytes,
            "recipe_sha256": self.recipe_sha256,
            "evidence": shown if evidence else None,
            "packages": list(self.packages),
        }


@dataclass(frozen=True)
class Report:
    """The result of `publish`. `sha` is the source's commit, or the fingerprint of a local one's bytes."""

    checkpoint: Checkpoint
    sha: str
    license: License
    variants: tuple[Published, ...]

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "source": {
                "id": self.checkpoint.id,
                "sha": self.sha,
                "family": self.checkpoint.family.name,
                "license": self.license.id,
            },
            "variants": [each.document() for each in self.variants],
        }


def publish(
    checkpoint: Checkpoint, options: Options, *, hub: str | None = None, progress: Progress = SILENT
) -> Report:
    """Publish variants of a checkpoint to `hub` ("local", an address, or None for the default).

    Raises SdhubError before any work where the call is wrong or refused; a variant that fails later is
    reported, and the others go on.
    """
    with prepare(checkpoint, options, hub=hub) as job:
        return run(job, progress)


@contextmanager
def prepare(
    checkpoint: Checkpoint, options: Options, *, hub: str | None = None, dry_run: bool = False
) -> Iterator[Job]:
    """Plan, and pass the gates: licence, token, privacy. A dry run needs no token."""
    settled = licensing.settle(checkpoint.license, options.license, source=checkpoint.id)
    with connect(hub) as target:
        namespace = options.namespace
        if not dry_run:
            namespace = check_token(target.url, target.token, namespace, propose=options.create_pr)
        plan = make_plan(
            checkpoint,
            namespace=namespace or "NAMESPACE",
            sampling=options.sampling or sampling_for(checkpoint),
            variants=options.variants,
            recipe=options.recipe,
            adjustment=options.adjustment,
        )
        yield Job(plan, options, settled, target)


def run(job: Job, progress: Progress = SILENT) -> Report:
    """Do what was prepared."""
    checkpoint = job.plan.checkpoint
    source = endpoint(None)
    identity = fingerprint(checkpoint, endpoint=source.url, token=source.token, progress=progress)
    base = Base(checkpoint, identity, job.plan.sampling, source, Work(home() / "work"), progress)
    results = tuple(_publish_variant(job, base, planned) for planned in job.plan.variants)
    return Report(checkpoint, checkpoint.sha or identity, job.license, results)


def _publish_variant(job: Job, base: Base, planned: PlannedVariant) -> Published:
    result = Published(planned.name, planned.repo_id, planned.recipe.sha256, status="failed")
    try:
        return _go_through(job, base, planned, result)
    except SdhubError as error:
        return replace(result, reason=error.message, error=error)
    except (OSError, RuntimeError, ValueError) as error:  # of libraries: other variants go on
        failure = EvidenceError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return replace(result, reason=failure.message, error=failure)
    finally:
        base.release()


def _go_through(job: Job, base: Base, planned: PlannedVariant, result: Published) -> Published:
    """Every stage of one variant. What was pushed is told even where the check fails."""
    vet_target(
        planned.repo_id,
        endpoint=job.hub.url,
        token=job.hub.token,
        private=job.private,
    )
    stages = VariantStages(base, planned.backend, planned.recipe)
    folder = _repository(job, base, planned, stages)
    pushed = _push(job, planned, folder, base.progress)
    done = replace(
        result,
        status=pushed.status,
        url=pushed.url,
        commit=pushed.commit,
        pull_request=pushed.pull_request_url,
        uploaded_bytes=pushed.uploaded_bytes,
        evidence=json.loads((folder / "evidence" / "evidence.json").read_text(encoding="utf-8")),
        packages=_packages(folder),
        folder=folder,
    )
    try:
        _check(job, base, planned, folder, pushed)
    except SdhubError as error:
        return replace(done, status="failed", reason=error.message, error=error)
    return done


def _repository(job: Job, base: Base, planned: PlannedVariant, stages: VariantStages) -> Path:
    """The folder to publish: variant, card, evidence, packages, provenance."""
    variant, evidence = stages.build(), stages.evidence()
    publication = _publication(job, base, planned, stages, variant, evidence)
    key = {
        "variant": stages.key,
        "evidence": evidence.name,
        "repository": planned.repo_id,
        "license": vars(job.license),
        "source": [base.checkpoint.id, publication.base_model, publication.source_url],
        "loras": [[lora.name, lora.sha] for lora in base.checkpoint.loras],
        "usage": publication.usage,
        "summary": publication.description,
        "notes": publication.notes,
        "bundles": sorted(publication.bundles),
        "checks": publication.checks,
    }

    def make(out: Path) -> None:
        assemble(publication, out, progress=base.progress)

    return base.work.stage(
        "repository", key, make, progress=base.progress, label="write the card and the packages"
    )


def _publication(
    job: Job, base: Base, planned: PlannedVariant, stages: VariantStages, variant: Path, evidence: Path
) -> Publication:
    backend, sampling = planned.backend, job.plan.sampling
    pictures = {
        f"{side}-{path.name}": path
        for side in ("base", "variant")
        for path in sorted((evidence / side).glob("*.png"))
    }
    return Publication(
        repo_id=planned.repo_id,
        checkpoint=base.checkpoint,
        identity=base.checkpoint.sha or base.identity,
        license=job.license,
        variant=planned.name,
        description=backend.variants.get(planned.name, "made by a recipe of its own (recipe.json)"),
        folder=variant,
        library=backend.library,
        tags=backend.tags,
        install=backend.install,
        usage=usage(backend.usage(base.checkpoint.pipeline, planned.repo_id), sampling),
        recipe=planned.recipe.document(),
        evidence=json.loads((evidence / "evidence.json").read_text(encoding="utf-8")),
        versions=stages.versions,
        license_file=license_file(base.checkpoint, job.license, endpoint(None)),
        contact_sheet=evidence / "contact_sheet.png",
        pictures=pictures,
        source_endpoint=endpoint(None).url,
        notes=tuple(backend.notes(base.checkpoint, planned.recipe)),
        bundles=backend.bundles(variant, planned.repo_id.rpartition("/")[2]),
        checks=backend.checks,
    )


def _push(job: Job, planned: PlannedVariant, folder: Path, progress: Progress) -> Pushed:
    return push(
        folder,
        planned.repo_id,
        endpoint=job.hub.url,
        token=job.hub.token,
        private=job.private,
        create_pr=job.options.create_pr,
        known={name: entry["sha256"] for name, entry in read_manifest(folder)["files"].items()},
        message=f"{planned.name} of {job.plan.checkpoint.id}, recipe {planned.recipe.sha256[:12]}",
        progress=progress,
    )


def _check(job: Job, base: Base, planned: PlannedVariant, folder: Path, pushed: Pushed) -> None:
    """Download what was published into an empty cache and run the card's lines; once per commit."""
    key = {"repository": planned.repo_id, "commit": pushed.commit, "hub": job.hub.name}

    def make(out: Path) -> None:
        check(
            planned.repo_id,
            pushed.commit,
            endpoint=job.hub.url,
            token=job.hub.token,
            folder_for_picture=out,
            expect=folder / "evidence" / "variant-00.png",
            usage=usage(planned.backend.usage(base.checkpoint.pipeline, planned.repo_id), base.sampling),
            draws=planned.backend.checks,
            progress=base.progress,
        )

    base.work.stage("check", key, make, progress=base.progress, label="check: download, load, draw")


def _packages(folder: Path) -> tuple[dict[str, Any], ...]:
    packages = read_manifest(folder)["packages"]
    return tuple(
        {"path": f"packages/{each['name']}", "sha256": each["sha256"], "bytes": each["bytes"]} for each in packages
    )
