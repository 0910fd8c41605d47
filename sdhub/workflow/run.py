"""One checkpoint's variants on their way to the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdhub.core.errors import EvidenceError, SdhubError
from sdhub.core.machine import free_memory
from sdhub.core.units import GIB
from sdhub.core.work import copy_tree
from sdhub.evidence.sampling import Sampling
from sdhub.publishing.card import card_revision, index_card
from sdhub.publishing.check import check
from sdhub.publishing.collection import Collection, merged
from sdhub.publishing.package import regular_files
from sdhub.publishing.publication import Publication, Sibling
from sdhub.publishing.push import Pushed, preview, push, vet_target
from sdhub.publishing.repository import assemble, figures_of, read_manifest
from sdhub.publishing.target import MAIN
from sdhub.recipes.recipe import load_recipe
from sdhub.workflow import mixed
from sdhub.workflow.job import Job
from sdhub.workflow.options import NAMESPACE
from sdhub.workflow.plan import PlannedVariant
from sdhub.workflow.quality_target import meet_target
from sdhub.workflow.report import Published, Report
from sdhub.workflow.stages import Base, VariantStages, source_files
from sdhub.workflow.usage import usage


@dataclass(frozen=True)
class _Made:
    """A variant that was built and measured, and is not published yet."""

    planned: PlannedVariant
    stages: VariantStages
    variant: Path
    evidence: Path
    curve: Path | None = None

    @property
    def figures(self) -> dict[str, Any]:
        """The evidence document."""
        document: dict[str, Any] = json.loads((self.evidence / "evidence.json").read_text(encoding="utf-8"))
        return document


class Run:
    """One checkpoint's variants on their way."""

    def __init__(self, job: Job, base: Base) -> None:
        self.job = job
        self.base = base
        self.collection = Collection(job.namespace, base.checkpoint.id, job.hub, base.progress)
        self.made: dict[str, _Made] = {}
        self.siblings: tuple[Sibling, ...] = ()

    def report(self) -> Report:
        """Measure all, then publish all."""
        variants = self.job.plan.variants
        results = {each.name: self._guarded(each, self._measure) for each in variants}
        own = [self._sibling(each) for each in variants if each.name in self.made]
        self.siblings = merged(own, self._others())
        for each in variants:
            if each.name in self.made:
                results[each.name] = self._guarded(self.made[each.name].planned, self._publish)
        outcome = tuple(results.values())
        checkpoint, sha = self.base.checkpoint, self.base.checkpoint.sha or self.base.identity
        return Report(checkpoint, sha, self.job.license, outcome, self._tie(outcome))

    def _guarded(self, planned: PlannedVariant, act: Callable[[PlannedVariant], Published]) -> Published:
        """What `act` gives; a failure is a result too, so that other variants go on."""
        try:
            return act(planned)
        except SdhubError as error:
            return replace(_empty(planned), reason=error.message, error=error)
        except Exception as error:  # noqa: BLE001 — of libraries: a fault of one variant stops no other
            failure = EvidenceError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return replace(_empty(planned), reason=failure.message, error=failure)

    def _measure(self, planned: PlannedVariant) -> Published:
        """Build and measure, once the target is known to be fit."""
        job = self.job
        vet_target(planned.repo_id, hub=job.hub, private=job.private)
        self._tell_memory(planned)
        curve = None
        if mixed.is_open(planned.recipe):
            folder = mixed.analyzed(self.base, planned.backend, planned.recipe)
            planned, curve = replace(planned, recipe=load_recipe(folder / mixed.RECIPE)), folder / mixed.CURVE
        target = job.options.adjustment.min_psnr
        if target is not None:
            planned = replace(planned, recipe=meet_target(self.base, planned.backend, planned.recipe, target))
        stages = VariantStages(self.base, planned.backend, planned.recipe)
        self.made[planned.name] = _Made(planned, stages, stages.build(), stages.evidence(), curve)
        return _empty(planned)

    def _tell_memory(self, planned: PlannedVariant) -> None:
        """Before hours of work, where memory may not do."""
        needed, free = self.job.plan.peak_bytes(planned), free_memory()
        if free is not None and needed > free:
            self.base.progress.note(
                f"{planned.name} takes about {needed / GIB:.0f} GiB of memory, and {free / GIB:.0f} GiB are free: "
                "it may be killed"
            )

    def _publish(self, planned: PlannedVariant) -> Published:
        """Card, packages, and a push that is checked before the branch moves."""
        folder, result = self._repository(planned), _empty(planned)
        result = replace(
            result,
            evidence=self.made[planned.name].figures,
            packages=_packages(folder),
            files={name: path.stat().st_size for name, path in regular_files(folder).items()},
            folder=folder,
        )
        if self.job.dry_run:
            return self._previewed(planned, folder, result)
        pushed = self._push(planned, folder)
        return replace(
            result,
            status=pushed.status,
            url=pushed.url,
            commit=pushed.commit,
            pull_request=pushed.pull_request_url,
            uploaded_bytes=pushed.uploaded_bytes,
            changes=pushed.changes,
        )

    def _previewed(self, planned: PlannedVariant, folder: Path, result: Published) -> Published:
        job = self.job
        seen = preview(
            folder,
            planned.repo_id,
            hub=job.hub,
            branch=planned.branch,
            known=_hashes(folder),
        )
        return replace(
            result, status="dry-run", url=seen.url, uploaded_bytes=seen.uploaded_bytes, changes=seen.changes
        )

    def _repository(self, planned: PlannedVariant) -> Path:
        """The folder to publish: variant, card, evidence, packages, provenance."""
        base = self.base
        publication = self._publication(planned, self.made[planned.name])
        key = {"card": card_revision(), "publication": publication.key(base.work.root)}

        def make(out: Path) -> None:
            assemble(publication, out, progress=base.progress)

        return base.work.stage(
            "repository", key, make, progress=base.progress, label="write the card and the packages"
        )

    def _publication(self, planned: PlannedVariant, made: _Made) -> Publication:
        backend, base, job = planned.backend, self.base, self.job
        terms = source_files(base.checkpoint, job.license.texts, job.source)
        pictures = {
            f"{side}-{path.name}": path
            for side in ("base", "variant")
            for path in sorted((made.evidence / side).glob("*.png"))
        }
        if made.curve:
            pictures[mixed.CURVE] = made.curve
        publication = Publication(
            repo_id=planned.repo_id,
            checkpoint=base.checkpoint,
            identity=base.checkpoint.sha or base.identity,
            license=job.license,
            variant=planned.name,
            description=backend.describe(planned.name) or "made by a recipe of its own (recipe.json)",
            folder=made.variant,
            library=backend.library,
            tags=backend.tags,
            install=backend.install,
            usage=self._usage(planned),
            recipe=planned.recipe.document(),
            evidence=made.figures,
            versions=made.stages.versions,
            license_file=terms[0] if job.license.file else None,
            notices=terms[1:] if job.license.file else terms,
            contact_sheet=made.evidence / "contact_sheet.png",
            pictures=pictures,
            source_endpoint=job.source.url,
            notes=(*base.checkpoint.notes, *backend.notes(base.checkpoint, planned.recipe)),
            checks=backend.checks,
            branch=_branch(planned),
            siblings=self.siblings,
            private=job.private,
            hub=None if job.hub.name == "local" else job.hub.url,
        )
        return replace(publication, bundles=backend.bundles(made.variant, publication.name))

    def _usage(self, planned: PlannedVariant, sampling: Sampling | None = None) -> str:
        """The card's lines, or the same drawing otherwise."""
        loading = planned.backend.usage(self.base.checkpoint.pipeline, planned.repo_id, _branch(planned))
        return usage(self.base.checkpoint.pipeline, loading, sampling or self.base.usual)

    def _push(self, planned: PlannedVariant, folder: Path) -> Pushed:
        job = self.job
        pinned = (self.base.checkpoint.sha or self.base.identity)[:12]
        checked: list[Path] = []
        pushed = push(
            folder,
            planned.repo_id,
            hub=job.hub,
            branch=planned.branch,
            private=job.private,
            gated=job.gated,
            create_pr=job.options.create_pr,
            known=_hashes(folder),
            message=f"{planned.name} of {job.plan.checkpoint.id} at {pinned}, recipe {planned.recipe.sha256[:12]}",
            check=lambda commit: checked.append(self._check(planned, folder, commit)),
            progress=self.base.progress,
        )
        if checked:  # of the same files: their commit on the branch needs no check of its own
            key = self._checking(planned, str(pushed.commit))
            self.base.work.stage("check", key, lambda out: copy_tree(checked[0], out))
        return pushed

    def _checking(self, planned: PlannedVariant, commit: str) -> dict[str, str]:
        return {"repository": planned.repo_id, "commit": commit, "hub": self.job.hub.name}

    def _check(self, planned: PlannedVariant, folder: Path, commit: str) -> Path:
        """Download a commit into an empty cache and draw with it; once per commit."""
        job = self.job

        def make(out: Path) -> None:
            check(
                planned.repo_id,
                commit,
                hub=job.hub,
                branch=planned.branch,
                folder_for_picture=out,
                expect=folder / "evidence" / "variant-00.png",
                usage=self._usage(planned),
                lines=self._usage(planned, self.base.sampling),
                draws=planned.backend.checks,
                device=self.base.device,
                progress=self.base.progress,
            )

        key, label = self._checking(planned, commit), "check: download, load, draw"
        return self.base.work.stage("check", key, make, progress=self.base.progress, label=label)

    def _sibling(self, planned: PlannedVariant) -> Sibling:
        figures = self.made[planned.name].figures
        return Sibling(planned.name, planned.repo_id, figures_of(figures), _branch(planned))

    def _others(self) -> list[Sibling]:
        """Variants that earlier runs published."""
        if not self.job.options.collection or self.job.options.branches or self.job.namespace == NAMESPACE:
            return []
        identity = self.base.checkpoint.sha or self.base.identity
        return self.collection.siblings(identity, private=self.job.private)

    def _tie(self, results: tuple[Published, ...]) -> str | None:
        job = self.job
        there = {(each.repo, each.branch) for each in results if each.status in {"published", "unchanged"}}
        own = [each for each in self.siblings if (each.repo_id, each.branch) in there]
        if job.dry_run or job.options.create_pr or not own:
            return None
        if job.options.branches:
            self._push_indexes(own)
        return self.collection.tie(own, private=job.private) if job.options.collection else None

    def _push_indexes(self, own: list[Sibling]) -> None:
        """The card on `main` of a repository whose variants are branches."""
        job, checkpoint = self.job, self.base.checkpoint
        for repo_id in sorted({each.repo_id for each in own}):
            rows = [each for each in own if each.repo_id == repo_id]
            planned = next(
                each for each in job.plan.variants if each.repo_id == repo_id and each.name in self.made
            )
            card = index_card(self._publication(planned, self.made[planned.name]), rows)

            def make(out: Path, card: str = card) -> None:
                (out / "README.md").write_text(card, encoding="utf-8", newline="\n")

            folder = self.base.work.stage("index", {"repository": repo_id, "card": card}, make)
            push(
                folder,
                repo_id,
                hub=job.hub,
                private=job.private,
                gated=job.gated,
                message=f"Branches of {checkpoint.id}",
                progress=self.base.progress,
            )


def _empty(planned: PlannedVariant) -> Published:
    return Published(
        planned.name, planned.repo_id, planned.recipe.sha256, status="failed", branch=_branch(planned)
    )


def _branch(planned: PlannedVariant) -> str | None:
    return None if planned.branch == MAIN else planned.branch


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a kept folder, from its `sdhub.json`."""
    return {name: entry["sha256"] for name, entry in read_manifest(folder)["files"].items()}


def _packages(folder: Path) -> tuple[dict[str, Any], ...]:
    manifest = read_manifest(folder)
    rows = [(f"packages/{each['name']}", each) for each in manifest["packages"]]
    rows += [(each["name"], each) for each in manifest["bundles"]]
    return tuple({"path": path, "sha256": each["sha256"], "bytes": each["bytes"]} for path, each in rows)
