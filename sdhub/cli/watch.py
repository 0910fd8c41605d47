"""`sdhub watch`: new and changed checkpoints become variants by themselves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sdhub.cli import elsewhere, options
from sdhub.cli.console import ConsoleProgress, emit, say, table, talk
from sdhub.cli.examples import examples

if TYPE_CHECKING:
    from sdhub.watching.query import Query
    from sdhub.watching.state import State
    from sdhub.watching.watch import Watcher
    from sdhub.workflow.options import Options

EXAMPLES = examples(
    "sdhub watch --author me --variant openvino-int8 --to me",
    "sdhub watch --filter text-to-image --likes-over 1000 --since 30d --once --on hf-jobs --to me",
    "sdhub watch --author acme --once --hub local --to acme",
    "sdhub watch --show",
)
Where = Literal["local", "github"]


def watch(
    author: Annotated[
        list[str] | None, typer.Option("--author", metavar="NAME", help="A user or organization. May be repeated.")
    ] = None,
    filter: Annotated[
        list[str] | None, typer.Option("--filter", metavar="TAG", help="A tag they all have. May be repeated.")
    ] = None,
    likes_over: Annotated[
        int | None, typer.Option("--likes-over", min=0, metavar="N", help="Liked more often than this.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="WHEN", help="Changed since: 2026-11-01, 12h, 7d, 4w.")
    ] = None,
    variant: options.Variants = None,
    recipe: options.Recipe = None,
    to: options.To = None,
    hub: options.Hub = None,
    license: options.License = None,
    private: Annotated[bool, typer.Option("--private", help="Publish into private repositories.")] = False,
    allow_public: Annotated[
        bool, typer.Option("--allow-public", help="Let private or gated sources become public.")
    ] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open pull requests instead of committing.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="One round, then stop.")] = False,
    interval: Annotated[int, typer.Option(min=10, metavar="SECONDS", help="Time between rounds.")] = 900,
    dispatch: Annotated[
        Where,
        typer.Option(
            "--dispatch",
            metavar="local|github",
            help="Who does it: this machine, or GitHub Actions (the matrix of the running workflow; elsewhere "
            "repository_dispatch events).",
        ),
    ] = "local",
    github: Annotated[
        str | None,
        typer.Option("--github", metavar="OWNER/NAME", help="Where events go (default: GITHUB_REPOSITORY)."),
    ] = None,
    on: elsewhere.On = None,
    timeout: elsewhere.Timeout = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", metavar="FILE", help="Where it keeps what it knows (default: SDHUB_HOME/watch.sqlite3)."
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Show what it knows, and stop.")] = False,
    json: options.Json = False,
) -> None:
    """Watch a Hub, and make variants of what is new or changed there, each once."""
    from sdhub.core.work import home
    from sdhub.watching.query import Query, parse_since
    from sdhub.watching.state import State
    from sdhub.workflow.options import Options

    moment = parse_since(since) if since else None
    query = None if show else Query(tuple(author or ()), tuple(filter or ()), likes_over, moment)
    wanted = Options(
        namespace=to,
        variants=tuple(variant or ()),
        recipe=recipe,
        license=license,
        private=private,
        allow_public=allow_public,
        create_pr=create_pr,
    )
    with State(state or home() / "watch.sqlite3") as known:
        if known.set_aside:
            talk(f"{known.path} was damaged: set aside as {known.set_aside.name}, and a new one is begun")
            talk("  what is published is seen on the Hub, and not done again")
        if query is not None:
            jobs = elsewhere.asked(on, timeout) if on else None
            with _watcher(known, query, wanted, hub, where=dispatch, github=github, jobs=jobs) as watcher:
                _run(watcher, None if once else interval)
        _tell(known, json=json)


@contextmanager
def _watcher(
    known: State,
    query: Query,
    wanted: Options,
    hub: str | None,
    *,
    where: Where,
    github: str | None,
    jobs: elsewhere.Asked | None,
) -> Iterator[Watcher]:
    """Connected to the Hub that it publishes to, whose token is checked."""
    from sdhub.core.access import check_token
    from sdhub.core.endpoint import connect, endpoint
    from sdhub.watching.watch import Watcher, dispatcher

    progress = ConsoleProgress()
    with connect(hub, jobs=jobs is not None) as target:
        wanted = replace(wanted, namespace=check_token(target, wanted.namespace, propose=wanted.create_pr))
        source = endpoint(None) if hub == "local" and not jobs else target
        own = check_token(target) if wanted.create_pr else str(wanted.namespace)
        engine = jobs.engine(target, own) if jobs else None
        who = dispatcher(
            where, wanted, source=source, target=target, github=github, engine=engine, progress=progress
        )
        yield Watcher(query, wanted, known, who, source=source, target=target, progress=progress)


def _run(watcher: Watcher, interval: int | None) -> None:
    """Round after round, `interval` seconds apart; one where that is None."""
    if interval is None:
        watcher.round()
        return
    with _until_ended() as stop:
        talk("Watching; Ctrl-C ends it.")
        watcher.watch(stop, interval)


@contextmanager
def _until_ended() -> Iterator[threading.Event]:
    """An event that SIGTERM sets: what runs is finished first. Ctrl-C interrupts."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(known: State, *, json: bool) -> None:
    tasks, refusals, troubles = known.tasks(), known.refusals(), known.troubles()
    if json:
        emit({"counts": known.counts(), "tasks": tasks, "refused": refusals, "troubles": troubles})
        return
    rows = [
        [f"{each['repository']}@{each['sha'][:12]}", each["variant"], each["status"], each["detail"]]
        for each in tasks
    ]
    rows += [[f"{each['repository']}@{each['sha'][:12]}", "", "refused", each["reason"]] for each in refusals]
    rows += [[f"{each['repository']}@{each['sha'][:12]}", "", "failed", each["reason"]] for each in troubles]
    if rows:
        table(["source", "variant", "status", ""], rows)
    else:
        say("Nothing was found yet.")
