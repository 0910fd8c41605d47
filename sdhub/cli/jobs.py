"""`sdhub jobs`: what runs as HF Jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from sdhub.cli import elsewhere, options
from sdhub.cli.console import emit, say, table
from sdhub.cli.examples import examples

app = typer.Typer(help="What `--on hf-jobs` began: list it, follow it, end it.", no_args_is_help=True)
Namespace = Annotated[
    str | None, typer.Option("--namespace", metavar="NAME", help="Whose jobs (default: your own).")
]
Id = Annotated[str, typer.Argument(metavar="JOB", help="The id of a job.")]
ON = "hf-jobs"


@app.command("list", epilog=examples("sdhub jobs list", "sdhub jobs list --namespace acme --json"))
def list_jobs(namespace: Namespace = None, hub: options.Hub = None, json: options.Json = False) -> None:
    """List sdhub's jobs, the newest first, with what each cost by the Hub's list of prices."""
    from sdhub.elsewhere.hardware import flavors
    from sdhub.elsewhere.ledger import ledger

    with elsewhere.engine(ON, namespace, hub, runs=False) as at:
        known = flavors(at.hub, at.progress)
        entries = ledger(at.hub.ask("list the jobs", at.jobs, at.progress), known)
    rows = [each.document() for each in entries]
    if json:
        emit({"jobs": rows})
        return
    shown = [
        [
            *(str(each[name] or "") for name in ("id", "stage", "verb", "source", "variant", "flavor")),
            *(f"{each[name]:g}" for name in ("forecast_minutes", "minutes")),
            elsewhere.dollars(each["dollars"]),
        ]
        for each in rows
    ]
    titles = ["job", "stage", "", "source", "variant", "hardware", "forecast", "minutes", "price"]
    if rows:
        table(titles, shown, right=(6, 7, 8))
    forecast, counted = sum(each.forecast_dollars for each in entries), sum(each.dollars for each in entries)
    say(f"{len(rows)} jobs: {elsewhere.dollars(counted)} so far, {elsewhere.dollars(forecast)} by forecast.")


@app.command(epilog=examples("sdhub jobs follow 6927b3c4d5e6f7a8b9c0d1e2"))
def follow(job: Id, namespace: Namespace = None, hub: options.Hub = None, json: options.Json = False) -> None:
    """Follow a job to its end; with --json, print the document that it ends with."""
    from sdhub.elsewhere.follow import follow as run

    with elsewhere.engine(ON, namespace, hub, runs=False) as at:
        end = run(at.hub, at.namespace, job, at.progress, replay=True)
    document = end.document()
    if json and document is not None:
        emit(document)
    if not end.done:
        raise end.failure()
    if not json:
        say(f"{job}: done")


@app.command(epilog=examples("sdhub jobs cancel 6927b3c4d5e6f7a8b9c0d1e2"))
def cancel(job: Id, namespace: Namespace = None, hub: options.Hub = None) -> None:
    """End a job. What it has finished is kept, and the same command goes on from there."""
    with elsewhere.engine(ON, namespace, hub, runs=False) as at:
        at.cancel(job)
    say(f"{job}: cancelled")
