"""The main job, start to end: from a checkpoint to published, verified variants.

inspect → plan → gates → for each variant: build → measure, then card and packages → push → check

Every stage's result is kept in the work folder under a key of its inputs, so that a run that was cut off goes
on where it stopped, and a run that changes nothing does nothing. All variants are measured before the first card
is written: each card shows all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.fetch import fingerprint
from sdhub.checkpoint.resolve import checkpoint_of
from sdhub.core.access import check_token
from sdhub.core.device import AUTO, CPU, resolve
from sdhub.core.endpoint import connect, endpoint
from sdhub.core.errors import UsageError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.core.work import Work, home
from sdhub.evidence.subject import PIXELS, encoder
from sdhub.publishing.terms import settle_all
from sdhub.workflow.job import Job
from sdhub.workflow.options import NAMESPACE, Options, options_for
from sdhub.workflow.plan import make_plan
from sdhub.workflow.report import Report
from sdhub.workflow.run import Run
from sdhub.workflow.stages import Base

SMALL = 128  # pixels a side of pictures whose subjects plain pixels can tell apart


def publish(
    source: str | Path | Checkpoint,
    variants: str | Sequence[str] = (),
    options: Options | None = None,
    *,
    hub: str | None = None,
    source_hub: Hub | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> Report:
    """Publish variants of a checkpoint to `hub` ("local", an address, or None for the default).

    What of the source is not here yet comes from `source_hub` (None: `HF_ENDPOINT` or huggingface.co).
    `variants` are one name or several; none: each backend's usual one. A dry run makes and measures everything and
    writes to no Hub. Raises SdhubError before any work where the call is wrong or refused; a variant that fails
    later is reported, and the others go on.
    """
    checkpoint, options = checkpoint_of(source), options_for(variants, options)
    with prepare(checkpoint, options, hub=hub, source_hub=source_hub, dry_run=dry_run) as job:
        return run(job, progress)


@contextmanager
def prepare(
    checkpoint: Checkpoint,
    options: Options,
    *,
    hub: str | None = None,
    source_hub: Hub | None = None,
    dry_run: bool = False,
) -> Iterator[Job]:
    """Plan, and pass the gates: licence, token, privacy. A dry run needs no token."""
    if options.branches and options.create_pr:
        raise UsageError("a pull request goes to main, not to a variant's branch", hint="choose one of the two")
    if options.device not in (AUTO, CPU):
        resolve(options.device)
    if options.judge:
        encoder(options.judge)  # before any work: an encoder that is none would fail after all of it
    settled = settle_all(checkpoint, options.license)
    with connect(hub) as target:
        namespace = options.namespace
        if not dry_run or (namespace is None and target.token):
            namespace = check_token(target, namespace, propose=options.create_pr)
        plan = make_plan(checkpoint, options, namespace=namespace)
        if options.runtime_device is not None:
            own = [each.backend for each in plan.variants if each.backend.runtime_devices]
            for backend in own or [plan.variants[0].backend]:
                backend.vet_runtime_device(options.runtime_device)
        source = source_hub or endpoint(None)
        yield Job(plan, options, settled, source, target, namespace or NAMESPACE, dry_run)


def run(job: Job, progress: Progress = SILENT) -> Report:
    """Do what was prepared."""
    checkpoint = job.plan.checkpoint
    identity = fingerprint(checkpoint, job.source, progress=progress)
    sampling, judge = job.plan.sampling, job.options.judge
    if judge is None and max(sampling.width, sampling.height) <= SMALL:
        judge = PIXELS
    device, own = str(resolve(job.options.device)), job.options.runtime_device
    plan, work = job.plan, Work(home() / "work")
    base = Base(checkpoint, identity, plan.scope, plan.usual, job.source, work, progress, judge, device, own)
    return Run(job, base).report()
