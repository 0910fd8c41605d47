"""`publish` as HF Jobs, one for each variant: planned and gated here, done there, told as if it were done here."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.resolve import resolve
from sdhub.core.errors import SdhubError, UnsupportedError, UsageError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.core.work import digest
from sdhub.elsewhere.engine import Engine
from sdhub.elsewhere.follow import Ended, follow
from sdhub.elsewhere.hardware import Need
from sdhub.elsewhere.request import Price, Request
from sdhub.publishing.manifest import holds
from sdhub.publishing.terms import settle_all
from sdhub.recipes.adjust import AS_IT_IS
from sdhub.workflow.many import Named, PublishRequest, SourceResult
from sdhub.workflow.plan import PlannedVariant, drawn_as, make_plan

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

AT_ONCE = 16  # jobs followed beside each other
WORK_COPIES = 3  # of a variant on a job's disk: built, packed, and downloaded again


@dataclass(frozen=True)
class PlannedJob:
    """A variant of a source that is to be published by a job."""

    order: PublishRequest
    sha: str | None
    variant: PlannedVariant
    request: Request
    price: Price

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "source": self.order.source,
            "variant": self.variant.name,
            "repo": self.variant.repo_id,
            "flavor": self.price.flavor.name,
            "minutes": round(self.price.minutes, 1),
            "dollars": round(self.price.dollars, 4),
            "limit_minutes": round(self.price.seconds / 60, 1),
        }


@dataclass(frozen=True)
class StartedJob:
    """A planned job and the Hub's: `job` None where none could be had, for `error`."""

    planned: PlannedJob
    job: JobInfo | None = None
    error: SdhubError | None = None

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return self.planned.document() | {"id": self.job and self.job.id, "url": self.job and self.job.url}


def plan_jobs(
    engine: Engine,
    order: PublishRequest,
    words: Sequence[str] = (),
    files: Mapping[str, Path] | None = None,
    *,
    licensed: bool = True,
) -> list[PlannedJob]:
    """A job for each variant of a source on the engine's Hub; the licence (where `licensed`) is settled here.

    `words` are further arguments of `publish` that mean what `order` means besides source, variants and namespace;
    `files` are what they name of this machine. Raises what `inspect` and `make_plan` raise, UsageError for what a
    job cannot see.
    """
    checkpoint, options = resolved(order, engine.hub)
    if licensed:
        settle_all(checkpoint, options.license)
    options = replace(options, namespace=options.namespace or engine.namespace)
    plan = make_plan(checkpoint, options)
    named = () if options.recipe else options.variants
    names = named or [each.name for each in make_plan(checkpoint, replace(options, adjustment=AS_IT_IS)).variants]
    jobs = []
    for name, variant in zip(dict.fromkeys(names), plan.variants, strict=True):
        alone = make_plan(checkpoint, replace(options, variants=(name,)))
        (row,) = alone.document()["variants"]  # with evidence of its own
        arguments = ["publish", pinned(checkpoint), *words, *([] if options.recipe else ["--variant", name])]
        arguments += ["--to", str(options.namespace), "--yes", "--json"]
        request = request_of(
            checkpoint,
            arguments,
            recipe=variant.recipe.sha256,
            extra=variant.backend.extra,
            minutes=row["minutes"],
            need=Need(row["peak_bytes"], checkpoint.bytes + WORK_COPIES * row["bytes"], on_gpu(words)),
            variant=variant.name,
            files=files,
        )
        jobs.append(PlannedJob(order, checkpoint.sha, variant, request, engine.price(request)))
    return jobs


def resolved(order: PublishRequest, hub: Hub) -> tuple[Checkpoint, Any]:
    """The checkpoint that an order names on a Hub, seen by a job as well as from here, and how to publish it."""
    checkpoint = visible(
        resolve(order.source, order.loras, order.config, order.controlnets, order.safety_checker, hub=hub)
    )
    return checkpoint, drawn_as(order.options, checkpoint, order.prompts, order.steps, order.guidance)


def visible(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint that a job can see. Raises UsageError where part of it lies on this machine alone."""
    built_in = checkpoint.source.text == "demo"
    local = [] if checkpoint.sha or built_in else [checkpoint.source.ref]
    local += [each.file for each in checkpoint.loras if each.sha is None]
    local += [each.ref for each in checkpoint.companions if each.sha is None]
    if checkpoint.config and Path(checkpoint.config).exists():
        local.append(checkpoint.config)
    if local:
        way = shlex.join(["hf", "upload", "NAMESPACE/NAME", local[0], "--private"])
        raise UsageError(
            f"{local[0]} is on this machine, where a job cannot see it", hint=f"put it on the Hub first: {way}"
        )
    return checkpoint


def pinned(checkpoint: Checkpoint) -> str:
    """What to type for a checkpoint at the commit that was looked at."""
    source = checkpoint.source
    return replace(source, revision=checkpoint.sha).text if checkpoint.sha else source.text


def on_gpu(words: Sequence[str]) -> bool:
    """Whether arguments ask for a GPU: `--device cuda`."""
    return any(one == "--device" and other.startswith("cuda") for one, other in pairwise(words))


def request_of(
    checkpoint: Checkpoint,
    arguments: Sequence[str],
    *,
    recipe: str,
    extra: str,
    minutes: float,
    need: Need,
    variant: str,
    files: Mapping[str, Path] | None = None,
    then: Callable[[str], Sequence[str]] = lambda _: (),
) -> Request:
    """The request of a command on a checkpoint, known by all that its result depends on; `then` of its key."""
    parts = [each.sha for each in checkpoint.loras] + [each.sha for each in checkpoint.companions]
    key = digest([list(arguments), checkpoint.sha, parts, recipe, metadata.version("sdhub")])[:32]
    labels = {
        "verb": arguments[0],
        "source": checkpoint.id,
        "sha": checkpoint.sha or "built-in",
        "variant": variant,
    }
    source = (checkpoint.source.ref, checkpoint.sha) if checkpoint.sha else None
    return Request(
        key, tuple(arguments), extra, minutes, need, labels, source, dict(files or {}), tuple(then(key))
    )


def start(engine: Engine, jobs: Sequence[PlannedJob]) -> list[StartedJob]:
    """Start or join each job; what fails of one stops no other."""
    started = []
    for each in jobs:
        try:
            job = engine.start(each.request, lambda _, each=each: _there(each, engine.hub))  # type: ignore[misc]
        except SdhubError as error:
            started.append(StartedJob(each, error=error))
            continue
        engine.progress.note(f"{each.order.source}: {each.variant.name} on {each.price.flavor.name}: {job.url}")
        started.append(StartedJob(each, job))
    return started


def results(engine: Engine, started: Sequence[StartedJob], progress: Progress = SILENT) -> list[SourceResult]:
    """Follow all jobs to their ends; the result of each source, with all its variants."""
    alone = len(started) == 1

    def end(each: StartedJob) -> Ended | SdhubError:
        if each.job is None:
            return each.error or SdhubError("it was not started")
        name = f"{each.planned.order.source} {each.planned.variant.name}"
        try:
            return follow(engine.hub, engine.namespace, each.job.id, progress if alone else Named(name, progress))
        except SdhubError as error:
            return error

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ended = list(pool.map(end, started))
    found: dict[str, list[SourceResult]] = {}
    for each, end_of in zip(started, ended, strict=True):
        found.setdefault(each.planned.order.source, []).append(_result(each, end_of))
    return [_merged(source, parts) for source, parts in found.items()]


def _there(planned: PlannedJob, hub: Hub) -> bool:
    """Whether what a finished job published is still there; what is no commit on `main` is taken at its word."""
    options, variant = planned.order.options, planned.variant
    if planned.order.dry_run or options.create_pr or variant.branch != "main":
        return True
    return holds(variant.repo_id, planned.sha, variant.recipe.sha256, hub)


def _result(started: StartedJob, end: Ended | SdhubError) -> SourceResult:
    source = started.planned.order.source
    if isinstance(end, SdhubError):
        return SourceResult(source, error=end, exit_code=end.exit_code)
    document = end.document()
    if document is None or "variants" not in document:
        error = end.failure() if not end.done else UnsupportedError(f"the log of {end.job.url} has no report")
        return SourceResult(source, error=error, exit_code=error.exit_code)
    return SourceResult(source, document, exit_code=end.exit_code)


def _merged(source: str, parts: Sequence[SourceResult]) -> SourceResult:
    """One result of the jobs of a source; the first error is that of all, beside what was published."""
    reports = [each.report for each in parts if each.report]
    error = next((each.error for each in parts if each.error), None)
    code = next((each.exit_code for each in parts if each.exit_code), 0)
    if not reports:
        return SourceResult(source, error=error, exit_code=code)
    variants = [row for each in reports for row in each["variants"]]
    collection = next((each["collection"] for each in reports if each.get("collection")), None)
    return SourceResult(source, reports[0] | {"variants": variants, "collection": collection}, error, code)
