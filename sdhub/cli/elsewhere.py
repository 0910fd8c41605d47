"""`--on hf-jobs`: the options of commands that can run as a job, and what they do then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdhub.cli.console import ConsoleProgress, asks, emit, fail, say, table, talk
from sdhub.cli.reports import show_many
from sdhub.core import nextsteps

if TYPE_CHECKING:
    from sdhub.elsewhere.engine import Engine
    from sdhub.elsewhere.publish import PlannedJob, StartedJob
    from sdhub.workflow.many import PublishRequest

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


@contextmanager
def engine(
    on: str, to: str | None, hub: str | None, timeout: str | None, *, detach: bool = False
) -> Iterator[Engine]:
    """The jobs of a Hub whose token is checked. Raises SdhubError."""
    from sdhub.core.access import check_token
    from sdhub.core.endpoint import connect, running
    from sdhub.core.errors import UsageError
    from sdhub.elsewhere.engine import Engine, parse_on
    from sdhub.elsewhere.request import parse_timeout

    flavor, seconds = parse_on(on), parse_timeout(timeout) if timeout else None
    if detach and hub == "local" and not running():
        raise UsageError(
            "the embedded Hub ends with this command, and its jobs do too",
            hint=f"run {nextsteps.serve_jobs()} first",
        )
    with connect(hub, jobs=True) as target:
        namespace = check_token(target, to)
        yield Engine(target, namespace, flavor, seconds, progress=ConsoleProgress())


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
    with engine(on, first.options.namespace, first.hub, timeout, detach=detach) as at:
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
            _leave(started, at, first.hub, json=json)
            return
        outcomes = [*elsewhere.results(at, started, at.progress), *refused]
    if not json:
        show_many(outcomes)
    elif len(orders) == 1 and outcomes[0].report:
        emit(outcomes[0].report)
    else:
        emit({"sources": [each.document() for each in outcomes]})
    for each in outcomes:
        if each.error:
            fail(f"{each.source}: {each.error.message}", each.error.hint)
    code = next((each.exit_code for each in outcomes if each.exit_code), 0)
    if code:
        raise typer.Exit(code)


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


def _leave(started: Sequence[StartedJob], at: Engine, hub: str | None, *, json: bool) -> None:
    if json:
        emit({"jobs": [each.document() for each in started]})
    else:
        for each in started:
            if each.job:
                say(f"{each.planned.variant.name}: {each.job.url}")
                say(f"  {nextsteps.follow(each.job.id, at.namespace, hub)}")
    failed = [each.error for each in started if each.error]
    for error in failed:
        fail(error.message, error.hint)
    if failed:
        raise typer.Exit(failed[0].exit_code)


def run_job(
    at: Engine, request: Any, still: Any, *, detach: bool, hub: str | None, json: bool
) -> Mapping[str, Any] | None:
    """The document of a command that ran as a job; None where it was left running. Raises SdhubError."""
    from sdhub.core.errors import SdhubError
    from sdhub.elsewhere.follow import follow

    job = at.start(request, still)
    talk(f"on {job.flavor}: {job.url}")
    if detach:
        if json:
            emit({"jobs": [{"id": job.id, "url": job.url}]})
        else:
            say(nextsteps.follow(job.id, at.namespace, hub))
        return None
    end = follow(at.hub, at.namespace, job.id, at.progress)
    document = end.document()
    if not end.done:
        raise end.failure()
    if document is None:
        raise SdhubError(f"the log of {job.url} has no report", hint="run again later")
    return document
