"""`sdhub demo`: the main job on the built-in checkpoint, against the embedded Hub."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sdhub.cli import options
from sdhub.cli.console import ConsoleProgress, emit, say, talk
from sdhub.cli.examples import examples
from sdhub.core import nextsteps

if TYPE_CHECKING:
    from sdhub.workflow.report import Report

EXAMPLES = examples("sdhub demo", "sdhub demo --variant openvino-fp16", "sdhub demo --json")


def demo(variant: options.Variants = None, json: options.Json = False) -> None:
    """Publish the built-in checkpoint to the embedded Hub and say where to look. Needs no network."""
    from sdhub.backends.base import backends
    from sdhub.cli.reports import leave, show
    from sdhub.workflow.options import Options
    from sdhub.workflow.publish import publish

    talk("The built-in checkpoint becomes a variant, is measured, published to the embedded Hub, and checked.")
    shown = tuple(variant or (each.demo for each in backends().values() if each.demo))
    wanted = Options(namespace="demo", variants=shown)
    report = publish("demo", options=wanted, hub="local", progress=ConsoleProgress())
    if json:
        emit(report.document())
        leave(report)
        return
    show(report, "local")
    for each in report.variants:
        if each.folder:
            say("")
            say(f"contact sheet  {each.folder / 'evidence' / 'contact_sheet.png'}")
            say(f"card           {each.folder / 'README.md'}")
    leave(report)
    say("")
    for each in report.variants:
        say(f"Draw with it:                  {nextsteps.generate(each.repo, 'red heart', 'heart.png', 'local')}")
    say(f"Publish a model of your own:   {nextsteps.publish_own()}")
    _keep_open(report)


def _keep_open(report: Report) -> None:
    """Where someone looks, the Hub runs until they are done; else the command that opens its pages is said."""
    from sdhub.cli.reports import ended, show_way
    from sdhub.core.nextsteps import LOCAL_PORT
    from sdhub.core.work import home
    from sdhub.hub.errors import StartError
    from sdhub.hub.server import serve

    if not (ended("local") and sys.stdin.isatty() and sys.stdout.isatty()):
        show_way(report, "local")
        return
    url = next((each.url for each in report.variants if each.url), None)
    port = (urlsplit(url).port if url else None) or LOCAL_PORT
    try:
        serve(home() / "hub", port=port, on_ready=lambda at: _show_pages(report, at))
        talk(f"The embedded Hub has ended; open its pages again with: {nextsteps.serve(url)}")
    except StartError:  # another program took the port
        show_way(report, "local")


def _show_pages(report: Report, at: str) -> None:
    say("")
    say(f"The embedded Hub is at {at} for as long as you look (Ctrl-C ends it)")
    for each in report.variants:
        say(f"  {each.url or each.repo}")
