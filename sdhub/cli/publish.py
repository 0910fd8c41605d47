"""`sdhub publish`: the main job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sdhub.cli import options
from sdhub.cli.console import ConsoleProgress, emit, fail, talk
from sdhub.cli.examples import examples
from sdhub.cli.reports import leave, show, show_many

if TYPE_CHECKING:
    from sdhub.job import Job
    from sdhub.many import Order

EXAMPLES = examples(
    "sdhub publish demo --to demo --hub local",
    "sdhub publish org/model --variant openvino-int8 --private",
    "sdhub publish ./my-finetune --license openrail++ --dry-run",
    "sdhub publish org/model --recipe mine.json --create-pr",
    "sdhub publish org/one org/two --variant openvino-int8 --variant sdnq-int8 --jobs 2 --memory 24",
)
GIB = 2**30


def publish(
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
    attention: options.Attentions = None,
    size: options.Sizes = None,
    lora: options.Loras = None,
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
    prompts: options.Prompts = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before publishing.")] = False,
    json: options.Json = False,
) -> None:
    """Make variants of checkpoints, measure them, publish them, and check that they load."""
    from sdhub.job import Options
    from sdhub.many import Order

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
        adjustment=options.adjustment(fast, attention, size),
    )
    loras = tuple(lora or ())
    orders = [
        Order(source, wanted, loras, config, prompts, steps, guidance, hub, dry_run)
        for source in dict.fromkeys(sources)
    ]
    if len(orders) == 1:
        _one(orders[0], ask=not (yes or json or dry_run or hub == "local"), json=json)
    else:
        _many(orders, jobs, memory, ask=not (yes or json or dry_run or hub == "local"), json=json)


def _one(order: Order, *, ask: bool, json: bool) -> None:
    from sdhub.publish import prepare, run

    checkpoint, wanted = order.resolved()
    with prepare(checkpoint, wanted, hub=order.hub, dry_run=order.dry_run) as job:
        if ask:
            _confirm(job)
        report = run(job, ConsoleProgress())
    if json:
        emit(report.document())
    else:
        show(report)
    leave(report)


def _many(orders: Sequence[Order], jobs: int, memory: float | None, *, ask: bool, json: bool) -> None:
    from sdhub.many import publish_many

    if ask and _asks():
        typer.confirm(f"Publish variants of {len(orders)} sources?", abort=True, err=True)
    bound = None if memory is None else int(memory * GIB)
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

    if _asks():
        plan.show(job.plan)
        typer.confirm(f"Publish to {job.hub.url}?", abort=True, err=True)


def _asks() -> bool:
    import sys

    if sys.stdin.isatty():
        return True
    talk("not asking: standard input is no terminal")
    return False
