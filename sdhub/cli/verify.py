"""`sdhub verify`: whether a published variant is what it says."""

from __future__ import annotations

from typing import Annotated

import typer

from sdhub.cli import options
from sdhub.cli.console import ConsoleProgress, emit, fail, say, table
from sdhub.cli.examples import examples

EXAMPLES = examples(
    "sdhub verify me/model-openvino-int8",
    "sdhub verify demo/emoji-sd-openvino-int8 --hub local --pictures 4",
    "sdhub verify ./downloaded --pictures 0 --json",
)


def verify(
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="NAMESPACE/NAME, or a folder that holds a downloaded one.")
    ],
    hub: options.Hub = None,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REV", help="A branch, tag or commit (default: main).")
    ] = None,
    pictures: Annotated[
        int, typer.Option("--pictures", min=0, max=100, help="How many pictures of the evidence to draw again.")
    ] = 1,
    device: options.Device = "auto",
    openvino_device: options.OpenVINODevice = None,
    json: options.Json = False,
) -> None:
    """Download a published variant, check every hash, its recipe and figures, and draw again on this machine."""
    from sdhub.workflow.verify import verify as run

    verified = run(
        repo,
        hub=hub,
        revision=revision,
        pictures=pictures,
        device=device,
        runtime_device=openvino_device,
        progress=ConsoleProgress(),
    )
    if json:
        emit(verified.document())
    else:
        say(f"{verified.repo}{f' at {verified.commit}' if verified.commit else ''}")
        say("")
        table(["check", "", ""], [[each.name, each.status, each.detail] for each in verified.findings])
    if not verified.sound:
        fail(
            f"{verified.repo} is not what it says it is",
            "do not use it; its publisher can publish it again with sdhub",
        )
        raise typer.Exit(1)
