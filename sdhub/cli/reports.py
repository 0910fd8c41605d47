"""What came of a publish, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from sdhub.cli import console
from sdhub.cli.console import fail, say, table
from sdhub.core import nextsteps

if TYPE_CHECKING:
    from sdhub.workflow.many import SourceResult
    from sdhub.workflow.report import Published, Report

MARKS = {"added": "+", "changed": "~", "removed": "-"}


def show(report: Report, hub: str | None) -> None:
    """The result for people, published to `hub`."""
    there = not ended(hub)
    for each in report.variants:
        say("")
        if each.status == "failed":
            say(f"{each.name}: failed: {each.reason}")
            continue
        say(f"{each.name}: {_became(each)}")
        say(f"  {_place(each, there=there)}{f' on branch {each.branch}' if each.branch else ''}")
        say(f"  {_figures(each)}")
        if each.status == "dry-run":
            say("")
            show_tree(each)
    if report.collection and there:
        say("")
        say(f"collection  {report.collection}")


def show_way(report: Report, hub: str | None) -> None:
    """Where pages of the embedded Hub can be seen, which ended with the run unless it was there before."""
    urls = [each.pull_request or each.url for each in report.variants]
    show_pages([each for each in (*urls, report.collection) if each], hub)


def show_pages(urls: Sequence[str], hub: str | None) -> None:
    """The command that opens pages of the embedded Hub, and their addresses then."""
    if urls and ended(hub):
        say("")
        say(f"Open these pages with:  {nextsteps.serve(urls[0])}")
        for each in urls:
            say(f"  {each}")


def ended(hub: str | None) -> bool:
    """Whether the embedded Hub was published to, and ended with the run."""
    from sdhub.core.endpoint import running

    return hub == "local" and not running()


def _place(each: Published, *, there: bool) -> str:
    return (there and (each.pull_request or each.url)) or each.repo


def leave(report: Report) -> None:
    """End with the exit code of the first failure, if there was one; its line goes to standard error."""
    failed = [each for each in report.variants if each.error]
    for each in failed:
        if each.error:
            fail(f"{each.name}: {each.error.message}", each.error.hint)
    if failed and failed[0].error:
        raise typer.Exit(failed[0].error.exit_code)


def _became(each: Published) -> str:
    if each.status == "dry-run":
        return f"nothing was written; {console.size(each.uploaded_bytes)} would be uploaded"
    if each.status == "unchanged":
        return "unchanged, nothing was uploaded"
    if each.status == "proposed":
        return f"proposed as a pull request, {console.size(each.uploaded_bytes)} uploaded"
    return f"published and checked, {console.size(each.uploaded_bytes)} uploaded"


def _figures(each: Published) -> str:
    evidence = each.evidence
    psnr, latency = evidence["psnr_db"], evidence["latency"]
    speed = f"{latency['ratio']:.2f} times the speed of torch float32" if latency else "speed not measured here"
    return (
        f"{console.size(evidence['bytes'])} from {console.size(evidence['base_bytes'])}, "
        f"{speed}, "
        f"PSNR {'infinite' if psnr is None else f'{psnr:.1f} dB'}, SSIM {evidence['ssim']:.4f}"
    )


def show_tree(each: Published) -> None:
    """Every file of a repository with its size, and what a commit would do to it."""
    say(f"{each.repo}/")
    files = {
        **dict.fromkeys((name for name, change in each.changes.items() if change == "removed"), 0),
        **each.files,
    }
    above: tuple[str, ...] = ()
    for path in sorted(files, key=lambda name: name.split("/")):
        *folders, name = path.split("/")
        common = next(
            (n for n, (a, b) in enumerate(zip(above, folders, strict=False)) if a != b),
            min(len(above), len(folders)),
        )
        for depth, folder in enumerate(folders[common:], start=common):
            say(f"  {'  ' * depth}  {folder}/")
        above = tuple(folders)
        mark = MARKS.get(each.changes.get(path, ""), "=")
        size = "" if mark == "-" else f"  {files[path]:,} B"
        say(f"{mark} {'  ' * len(folders)}  {name}{size}")
    say(f"{len(each.files)} files, {sum(each.files.values()):,} B; + added, ~ changed, - removed, = as it is")


def show_many(outcomes: Sequence[SourceResult]) -> None:
    """One table of all sources and variants."""
    rows = []
    for outcome in outcomes:
        if outcome.error:
            rows.append([outcome.source, "", f"failed: {outcome.error.message}", "", "", "", ""])
        rows += [_row(outcome.source, each) for each in (outcome.report or {}).get("variants", [])]
    say("")
    table(["source", "variant", "result", "size", "speed", "PSNR", "repository"], rows, right=(3, 4, 5))


def _row(source: str, each: dict[str, Any]) -> list[str]:
    evidence = each["evidence"] or {}
    ratio, psnr = evidence.get("latency_ratio"), evidence.get("psnr_db")
    place = f"{each['repo']} ({each['branch']})" if each["branch"] else str(each["repo"])
    return [
        source,
        str(each["name"]),
        f"failed: {each['reason']}" if each["status"] == "failed" else str(each["status"]),
        console.size(each["bytes"]) if each["bytes"] else "",
        f"{ratio:.2f}×" if ratio else "",
        f"{psnr:.1f} dB" if psnr else "",
        place,
    ]
