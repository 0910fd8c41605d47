"""`--on hf-jobs`: the options of commands that can run as a job, and what they do then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdhub.cli.console import ConsoleProgress, asks, emit, fail, say, table
from sdhub.cli.reports import show_many
from sdhub.core import nextsteps

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

    from sdhub.core.hub import Hub
    from sdhub.elsewhere.engine import Engine
    from sdhub.elsewhere.publish import PlannedJob, StartedJob
    from sdhub.workflow.many import PublishRequest
    from sdhub.workflow.options import Options

On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="hf-jobs[:FLAVOR]",
        help="Have the Hub do it, an HF Job for each variant, on FLAVOR or the cheapest hardware that it fits.",
    ),
]
Timeout = Annotated[
    str | None,
    typer.Option(
        "--timeout",
        metavar="TIME",
        help="Of a job, such as 90m or 6h (default: twice the forecast, and 20 minutes).",
    ),
]
Detach = Annotated[bool, typer.Option("--detach", help="Start the jobs, and do not wait for them.")]
HERE = {"on", "timeout", "detach", "hub", "to", "json", "yes", "variant", "jobs", "memory", "source", "sources"}
LOCAL_NAMES = {"judge"}  # what may be a folder here, and is not looked at before the work begins


@dataclass
class Forwarded:
    """Arguments of a command that a job gets as they were given, and the files of this machine that they name."""

    words: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)


def forwarded(ctx: typer.Context, besides: Sequence[str] = ()) -> Forwarded:
    """What a call says but for `besides` and what is for this machine alone. Raises UsageError."""
    from sdhub.core.errors import UsageError
    from sdhub.elsewhere.engine import place_of

    found = Forwarded()
    for option in ctx.command.params:
        name, value = str(option.name), ctx.params.get(str(option.name))
        source = ctx.get_parameter_source(name)
        if name in HERE or name in besides or source is None or source.name != "COMMANDLINE":
            continue
        if isinstance(value, bool):
            found.words.append(option.opts[0] if value else option.secondary_opts[0])
            continue
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if name in LOCAL_NAMES and Path(str(each)).exists():
                raise UsageError(
                    f"{each} is on this machine, where a job cannot see it", hint="name one on the Hub"
                )
            if isinstance(each, Path):
                place = place_of(each)
                found.files[place] = each
                each = place
            found.words += [option.opts[0], str(each)]
    return found


@dataclass(frozen=True)
class Asked:
    """What `--on` and `--timeout` say: a flavor and seconds, where they say one."""

    flavor: str | None
    seconds: int | None

    def engine(self, target: Hub, namespace: str) -> Engine:
        """The jobs of a namespace on a Hub."""
        from sdhub.elsewhere.engine import Engine

        return Engine(target, namespace, self.flavor, self.seconds, progress=ConsoleProgress())


def asked(on: str, timeout: str | None) -> Asked:
    """Raises UsageError where it means nothing."""
    from sdhub.elsewhere.engine import parse_on
    from sdhub.elsewhere.request import parse_timeout

    return Asked(parse_on(on), parse_timeout(timeout) if timeout else None)


@contextmanager
def engine(
    on: str,
    to: str | None,
    hub: str | None,
    timeout: str | None = None,
    *,
    detach: bool = False,
    runs: bool = True,
) -> Iterator[Engine]:
    """The jobs of a Hub whose token is checked; not `runs`: they are looked at alone. Raises SdhubError."""
    from sdhub.core.access import check_token
    from sdhub.core.endpoint import connect, running
    from sdhub.core.errors import UsageError

    wanted = asked(on, timeout)
    if detach and hub == "local" and not running():
        raise UsageError(
            "the embedded Hub ends with this command, and its jobs do too",
            hint=f"run {nextsteps.serve_jobs()} first",
        )
    with connect(hub, jobs=runs) as target:
        yield wanted.engine(target, check_token(target, to))


def publish(
    ctx: typer.Context,
    orders: Sequence[PublishRequest],
    on: str,
    timeout: str | None,
    *,
    detach: bool,
    ask: bool,
    json: bool,
) -> None:
    """`sdhub publish --on`."""
    from sdhub.core.errors import SdhubError
    from sdhub.elsewhere import publish as elsewhere
    from sdhub.workflow.many import SourceResult

    given, first = forwarded(ctx), orders[0]
    to = None if first.options.create_pr else first.options.namespace  # proposals go to others' namespaces too
    with engine(on, to, first.hub, timeout, detach=detach) as at:
        planned, refused = [], []
        for order in orders:
            try:
                planned += elsewhere.plan_jobs(at, order, given.words, given.files)
            except SdhubError as error:
                if len(orders) == 1:
                    raise
                refused.append(SourceResult(order.source, error=error, exit_code=error.exit_code))
        if ask:
            _confirm(planned, at)
        started = elsewhere.start(at, planned)
        if detach:
            _leave(started, at, json=json)
            return
        if len(started) == 1 and started[0].job:
            _tell(started[0].job, at)
        outcomes = [*elsewhere.results(at, started, at.progress), *refused]
    only = outcomes[0] if len(orders) == 1 else None
    if only and only.error and not only.report:
        raise only.error
    if not json:
        show_many(outcomes)
    else:
        emit(only.report if only else {"sources": [each.document() for each in outcomes]})
    for each in outcomes:
        if each.error:
            fail(f"{each.source}: {each.error.message}", each.error.hint)
    code = next((each.exit_code for each in outcomes if each.exit_code), 0)
    if code:
        raise typer.Exit(code)


def plan(ctx: typer.Context, wanted: Options, on: str, timeout: str | None) -> list[PlannedJob]:
    """`sdhub plan --on`: the jobs that `publish` would run, and what each may cost."""
    from sdhub.elsewhere.publish import plan_jobs
    from sdhub.workflow.many import PublishRequest

    said = ctx.params
    order = PublishRequest(
        said["source"],
        wanted,
        loras=said["lora"] or (),
        controlnets=said["controlnet"] or (),
        safety_checker=said["safety_checker"],
        config=said["config"],
        prompts=said["prompts"],
        steps=said["steps"],
        guidance=said["guidance"],
    )
    given = forwarded(ctx)
    with engine(on, wanted.namespace, None, timeout) as at:
        return plan_jobs(at, order, given.words, given.files, licensed=False)


def _confirm(planned: Sequence[PlannedJob], at: Engine) -> None:
    if asks():
        show_jobs(planned)
        typer.confirm(f"Run {len(planned)} jobs of {at.namespace} at {at.hub.url}?", abort=True, err=True)


def show_jobs(planned: Sequence[PlannedJob]) -> None:
    """The price of jobs, for people."""
    rows = [
        [
            each.order.source,
            each.variant.name,
            each.price.flavor.name,
            f"{each.price.minutes:g}",
            dollars(each.price.dollars),
            f"{each.price.seconds / 60:.0f}",
            dollars(each.price.most),
        ]
        for each in planned
    ]
    say("")
    table(["source", "variant", "hardware", "minutes", "price", "limit", "at most"], rows, right=(3, 4, 5, 6))
    say("")
    say(
        f"{dollars(sum(each.price.dollars for each in planned))} by the forecast and the Hub's list of prices, "
        f"at most {dollars(sum(each.price.most for each in planned))}."
    )


def dollars(amount: float) -> str:
    """Money for people: $1.25, $0.0042."""
    return f"${amount:.2f}" if amount >= 1 else f"${amount:.4f}"


def _leave(started: Sequence[StartedJob], at: Engine, *, json: bool) -> None:
    if json:
        emit({"jobs": [each.document() for each in started]})
    else:
        for each in started:
            if each.job:
                say(f"{each.planned.variant.name}: {each.job.url}")
                say(f"  {nextsteps.follow(each.job.id, at.namespace, at.hub.option)}")
    failed = [each.error for each in started if each.error]
    for error in failed:
        fail(error.message, error.hint)
    if failed:
        raise typer.Exit(failed[0].exit_code)


def build(
    ctx: typer.Context, output: Path, on: str, timeout: str | None, *, detach: bool, json: bool
) -> dict[str, Any] | None:
    """`sdhub build --on`: what `build` returns; None where the job was left running."""
    from sdhub.cli import options
    from sdhub.core.errors import UsageError
    from sdhub.elsewhere import single

    if output.exists():
        raise UsageError(f"{output} exists", hint="name a folder that does not")
    given, said = forwarded(ctx, ["output"]), ctx.params
    adjustment = options.adjustment(
        *(said[name] for name in ("fast", "attention", "size", "chunk", "static", "min_psnr"))
    )
    with engine(on, None, None, timeout, detach=detach) as at:
        sources = (said["lora"] or (), said["config"], said["controlnet"] or (), said["safety_checker"])
        checkpoint = single.seen(at, said["source"], *sources)
        request = single.build_request(
            at, checkpoint, said["variant"] or (), said["recipe"], adjustment, given.words, given.files
        )
        job = at.start(request, lambda _: single.is_built(at, request))
        if detach:
            _left(job, at, json=json)
            return None
        _tell(job, at)
        document = single.document_of(at, job)
        single.fetch_built(at, request, output)
    return document | {"output": str(output)}


def analyze(
    ctx: typer.Context, on: str, timeout: str | None, *, detach: bool, json: bool
) -> dict[str, Any] | None:
    """`sdhub analyze --on`: the document of what was found; None where the job was left running."""
    from sdhub.core.errors import UsageError
    from sdhub.elsewhere import single

    said = ctx.params
    if said["apple"] or said["curve"]:
        raise UsageError("a job gives recipes alone", hint="leave away --apple and --curve")
    given = forwarded(ctx, ["output"])
    with engine(on, None, None, timeout, detach=detach) as at:
        checkpoint = single.seen(at, said["source"], said["lora"] or (), said["config"])
        job = at.start(single.analyze_request(checkpoint, said["backend"], given.words, given.files))
        if detach:
            _left(job, at, json=json)
            return None
        _tell(job, at)
        return single.document_of(at, job)


def _tell(job: JobInfo, at: Engine) -> None:
    from sdhub.elsewhere.engine import ended

    if not ended(job):
        way = nextsteps.cancel(job.id, at.namespace, at.hub.option)
        at.progress.note(f"It runs on {job.flavor}, also after Ctrl-C. To end it: {way}")


def _left(job: JobInfo, at: Engine, *, json: bool) -> None:
    if json:
        emit({"jobs": [{"id": job.id, "url": job.url}]})
    else:
        say(job.url)
        say(nextsteps.follow(job.id, at.namespace, at.hub.option))
