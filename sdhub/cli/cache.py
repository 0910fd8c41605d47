"""`sdhub cache`: what sdhub keeps on this machine, and clearing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sdhub.cli import options
from sdhub.cli.console import emit, facts, say, size, table, talk
from sdhub.cli.examples import examples

if TYPE_CHECKING:
    from sdhub.workflow.cache import Held

app = typer.Typer(help="What sdhub keeps on this machine, and clearing it.", invoke_without_command=True)


@app.callback(epilog=examples("sdhub cache", "sdhub cache --json", "sdhub cache clear --older-than 30d"))
def cache(context: typer.Context, json: options.Json = False) -> None:
    """Show what the work folder (SDHUB_HOME) and folders for passing files hold."""
    from sdhub.core.work import home
    from sdhub.workflow.cache import holdings

    if context.invoked_subcommand:
        return
    held = holdings()
    if json:
        emit(_document(held))
        return
    if held:
        table(["what", "entries", "size", "last used", "in use"], _rows(held), right=(1, 2, 3, 4))
        say("")
    facts({"work folder": str(home() / "work"), "in all": size(sum(each.bytes for each in held))})


@app.command(
    epilog=examples(
        "sdhub cache clear --older-than 30d",
        "sdhub cache clear --max-size 20GB --yes",
        "sdhub cache clear --all --dry-run",
    )
)
def clear(
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="SPAN", help="What was not used for so long: 12h, 30d, 4w."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max-size", metavar="SIZE", help="Least recently used first, until this much is left: 20GB, 500MB."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that no running process uses.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: options.Json = False,
) -> None:
    """Clear kept results, least recently used first; what a running process uses stays.

    What dead processes left goes in any case. Cleared results are made again when they are needed. Published
    repositories of the embedded Hub and the state of a watcher are no cache, and stay.
    """
    from sdhub.core.errors import UsageError
    from sdhub.workflow.cache import chosen, holdings, parse_bytes, parse_span
    from sdhub.workflow.cache import clear as run

    if not everything and older_than is None and max_size is None:
        raise UsageError("nothing says what to clear", hint="give --older-than 30d, --max-size 20GB or --all")
    span = parse_span(older_than) if older_than is not None else None
    limit = parse_bytes(max_size) if max_size is not None else None
    going = chosen(holdings(), older_than=span, max_bytes=limit, everything=everything)
    if going and not (dry_run or yes):
        _confirm(going)
    if not dry_run and going:
        going = run(older_than=span, max_bytes=limit, everything=everything)
    if json:
        emit({"cleared": not dry_run, **_document(going)})
        return
    if going:
        table(["what", "entries", "size", "last used", "in use"], _rows(going), right=(1, 2, 3, 4))
        say("")
    words = "would be cleared" if dry_run else "cleared"
    say(f"{size(sum(each.bytes for each in going))} {words}")


def _confirm(going: Sequence[Held]) -> None:
    import sys

    from sdhub.core.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError(
            "standard input is no terminal to ask at", hint="add --yes, or --dry-run to see what would go"
        )
    talk(f"{len(going)} entries of {size(sum(each.bytes for each in going))} go.")
    typer.confirm("Clear them?", abort=True, err=True)


def _document(held: Sequence[Held]) -> dict[str, object]:
    from sdhub.core.work import home

    return {
        "home": str(home()),
        "bytes": sum(each.bytes for each in held),
        "entries": [each.document() for each in held],
    }


def _rows(held: Sequence[Held]) -> list[list[str]]:
    """One row for each stage and kind, largest first."""
    groups: dict[str, list[Held]] = {}
    for each in held:
        groups.setdefault(each.stage if each.kind == "result" else f"{each.stage} ({each.kind})", []).append(each)
    ordered = sorted(groups.items(), key=lambda group: -sum(each.bytes for each in group[1]))
    return [
        [
            name,
            str(len(rows)),
            size(sum(each.bytes for each in rows)),
            _ages([each.used for each in rows]),
            str(sum(each.busy for each in rows)),
        ]
        for name, rows in ordered
    ]


def _ages(used: Sequence[float]) -> str:
    first, last = _age(max(used)), _age(min(used))
    return f"{first} ago" if first == last else f"{first} to {last} ago"


def _age(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
