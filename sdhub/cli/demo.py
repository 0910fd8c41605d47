"""`sdhub demo`: the main job on the built-in checkpoint, against the embedded Hub."""

from __future__ import annotations

from sdhub.cli import options
from sdhub.cli.console import ConsoleProgress, emit, say, talk
from sdhub.cli.examples import examples

EXAMPLES = examples("sdhub demo", "sdhub demo --variant openvino-fp16", "sdhub demo --json")


def demo(variant: options.Variants = None, json: options.Json = False) -> None:
    """Publish the built-in checkpoint to the embedded Hub and say where to look. Needs no network."""
    from sdhub.cli.reports import leave, show
    from sdhub.workflow.options import Options
    from sdhub.workflow.publish import publish

    talk("The built-in checkpoint becomes a variant, is measured, published to the embedded Hub, and checked.")
    wanted = Options(namespace="demo", variants=tuple(variant or ("openvino-int8",)))
    report = publish("demo", options=wanted, hub="local", progress=ConsoleProgress())
    if json:
        emit(report.document())
        leave(report)
        return
    show(report)
    for each in report.variants:
        if each.folder:
            say("")
            say(f"contact sheet  {each.folder / 'evidence' / 'contact_sheet.png'}")
            say(f"card           {each.folder / 'README.md'}")
    leave(report)
    say("")
    say("Look at it in a browser:       sdhub hub serve")
    for each in report.variants:
        say(f'Draw with it:                  sdhub generate {each.repo} "red heart" --hub local -o heart.png')
    say("Publish a model of your own:   sdhub publish SOURCE --to NAMESPACE --hub local")
