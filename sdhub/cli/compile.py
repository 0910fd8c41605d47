"""`sdhub compile`: compiled bundles of a published Core ML variant, made on a Mac."""

from __future__ import annotations

from typing import Annotated

import typer

from sdhub.cli import options
from sdhub.cli.console import ConsoleProgress, emit, say, size
from sdhub.cli.examples import examples

EXAMPLES = examples("sdhub compile me/coreml-model-6bit", "sdhub compile me/coreml-model-6bit --create-pr")


def compile(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="A published Core ML variant, as NAMESPACE/NAME.")],
    hub: options.Hub = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    json: options.Json = False,
) -> None:
    """On macOS: compile the packages of a published variant, and add the bundles to its repository."""
    from sdhub.core.access import check_token
    from sdhub.core.endpoint import connect
    from sdhub.workflow.compiled import add_compiled

    with connect(hub) as at:
        check_token(at, repo.partition("/")[0], propose=create_pr)
        pushed = add_compiled(repo, hub=at, create_pr=create_pr, progress=ConsoleProgress())
    if json:
        emit({"status": pushed.status, "url": pushed.url, "commit": pushed.commit, "bytes": pushed.uploaded_bytes})
    else:
        say(f"{pushed.status}: {pushed.url} ({size(pushed.uploaded_bytes)} uploaded)")
