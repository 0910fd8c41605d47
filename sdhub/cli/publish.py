"""`sdhub publish`: the main job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from sdhub.cli import elsewhere, options
from sdhub.cli.console import ConsoleProgress, asks, emit, fail, say
from sdhub.cli.examples import examples
from sdhub.cli.reports import leave, show, show_many, show_way
from sdhub.core import nextsteps
from sdhub.core.units import GIB

if TYPE_CHECKING:
    from sdhub.spaces.deploy import Deployed
    from sdhub.workflow.job import Job
    from sdhub.workflow.many import PublishRequest
    from sdhub.workflow.report import Report

EXAMPLES = examples(
    "sdhub publish demo --to demo --hub local",
    "sdhub publish org/model --variant openvino-int8 --private",
    "sdhub publish ./my-finetune --license openrail++ --dry-run",
    "sdhub publish org/model --recipe mine.json --create-pr",
    "sdhub publish org/model --variant sdnq-int8 --on hf-jobs --to me",
    "sdhub publish org/one org/two --variant openvino-int8 --variant sdnq-int8 --jobs 2 --memory 24",
)


def publish(
    ctx: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Hub ids (org/name, org/name@revision), diffusers folders, .safetensors files, or demo, the "
            "built-in checkpoint.",
            show_default=False,
        ),
    ],
    to: options.To = None,
    hub: options.Hub = None,
    variant: options.Variants = None,
    recipe: options.Recipe = None,
    fast: options.Fast = False,
    calibration: options.Calibrations = None,
    attention: options.Attentions = None,
    size: options.Sizes = None,
    static: options.Static = None,
    chunk: options.Chunk = False,
    min_psnr: options.MinPsnr = None,
    lora: options.Loras = None,
    controlnet: options.ControlNets = None,
    safety_checker: options.SafetyChecker = False,
    config: options.Config = None,
    license: options.License = None,
    private: Annotated[bool, typer.Option("--private", help="Publish into private repositories.")] = False,
    allow_public: Annotated[
        bool, typer.Option("--allow-public", help="Let a private or gated source become public.")
    ] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open pull requests, or update them, instead of committing.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="TEMPLATE", help="Names of repositories, such as {model}-for-intel-{treatment}."
        ),
    ] = None,
    branches: Annotated[
        bool, typer.Option("--branches", help="One repository for each backend, with a branch for each variant.")
    ] = False,
    collection: Annotated[
        bool, typer.Option(help="Tie the variants of a source together in a collection on the Hub.")
    ] = True,
    space: Annotated[
        bool, typer.Option("--space", help="Deploy a demo Space of what was published, and wait until it runs.")
    ] = False,
    prompts: options.Prompts = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    evidence: options.Evidence = None,
    evidence_minutes: options.EvidenceMinutes = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="ENCODER",
            help="Tell whether subjects were kept, by a CLIP-like model (a Hub id or folder), or pixels.",
        ),
    ] = None,
    device: options.Device = "auto",
    openvino_device: options.OpenVINODevice = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="Sources at a time.")] = 1,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory", metavar="GIB", min=0.1, help="Bound of several jobs (default: 80 % of what is free)."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make and measure all, and show what would be written.")
    ] = False,
    on: elsewhere.On = None,
    timeout: elsewhere.Timeout = None,
    detach: elsewhere.Detach = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before publishing.")] = False,
    json: options.Json = False,
) -> None:
    """Make variants of checkpoints, measure them, publish them, and check that they load."""
    from sdhub.workflow.many import PublishRequest
    from sdhub.workflow.options import Options

    wanted = Options(
        namespace=to,
        variants=tuple(variant or ()),
        recipe=recipe,
        license=license,
        private=private,
        allow_public=allow_public,
        create_pr=create_pr,
        template=name,
        branches=branches,
        collection=collection,
        judge=judge,
        device=device,
        runtime_device=openvino_device,
        budget=options.budget(evidence, evidence_minutes),
        adjustment=options.adjustment(fast, attention, size, chunk, static, min_psnr, calibration),
    )
    order = PublishRequest(
        "",
        wanted,
        loras=lora or (),
        controlnets=controlnet or (),
        safety_checker=safety_checker,
        config=config,
        prompts=prompts,
        steps=steps,
        guidance=guidance,
        hub=hub,
        dry_run=dry_run,
    )
    orders = [replace(order, source=source) for source in dict.fromkeys(sources)]
    ask = not (yes or json or dry_run or hub == "local")
    if space:
        _fit_for_a_space(orders, on)
    if on:
        elsewhere.publish(ctx, orders, on, timeout, detach=detach, ask=ask, json=json)
    elif len(orders) == 1:
        _one(orders[0], space=space, ask=ask, json=json)
    else:
        _many(orders, jobs, memory, ask=ask, json=json)


def _one(order: PublishRequest, *, space: bool, ask: bool, json: bool) -> None:
    from sdhub.cli.space import tell
    from sdhub.workflow.publish import prepare, run

    checkpoint, wanted = order.resolved()
    with prepare(checkpoint, wanted, hub=order.hub, dry_run=order.dry_run) as job:
        if ask:
            _confirm(job)
        report = run(job, ConsoleProgress())
        deployed = _deploy(report, job) if space else None
    if json:
        emit(report.document() | ({"space": deployed.document()} if deployed else {}))
    else:
        show(report, None if order.dry_run else order.hub)
        if deployed:
            say("")
            tell(deployed, order.hub)
        if not order.dry_run:
            show_way(report, order.hub)
    leave(report)


def _fit_for_a_space(orders: Sequence[PublishRequest], on: str | None) -> None:
    """Raises UsageError, before any work, where a Space could not show what will be published."""
    from sdhub.core.errors import UsageError

    options = orders[0].options
    if len(orders) > 1 or on:
        when = "not with --on" if on else "for one source at a time"
        raise UsageError(f"--space is {when}", hint=f"deploy others with: {nextsteps.deploy()}")
    if options.create_pr or options.branches or options.private or orders[0].dry_run:
        raise UsageError(
            "--space shows public variants on main: not with --create-pr, --branches, --private or --dry-run",
            hint=f"deploy a Space of private variants with: {nextsteps.deploy_private()}",
        )


def _deploy(report: Report, job: Job) -> Deployed | None:
    """The Space of what was published; None where nothing was."""
    from sdhub.spaces.publish import deploy_demo

    there = [each.repo for each in report.variants if each.status in {"published", "unchanged"}]
    return deploy_demo(there, hub=job.hub, progress=ConsoleProgress()) if there else None


def _many(orders: Sequence[PublishRequest], jobs: int, memory: float | None, *, ask: bool, json: bool) -> None:
    from sdhub.workflow.many import publish_many

    if ask and asks():
        typer.confirm(f"Publish variants of {len(orders)} sources?", abort=True, err=True)
    bound = None if memory is None else memory * GIB
    outcomes = publish_many(orders, jobs=jobs, memory=bound, progress=ConsoleProgress())
    if json:
        emit({"sources": [each.document() for each in outcomes]})
    else:
        show_many(outcomes)
    for each in outcomes:
        if each.error:
            fail(f"{each.source}: {each.error.message}", each.error.hint)
    code = next((each.exit_code for each in outcomes if each.exit_code), 0)
    if code:
        raise typer.Exit(code)


def _confirm(job: Job) -> None:
    from sdhub.cli import plan

    if asks():
        plan.show(job.plan)
        typer.confirm(f"Publish to {job.hub.url}?", abort=True, err=True)
