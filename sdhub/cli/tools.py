"""`sdhub package` and `sdhub push`: single steps of publishing, for folders made by other means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdhub.cli import options
from sdhub.cli.console import ConsoleProgress, emit, say, size
from sdhub.cli.examples import examples

PACKAGE_EXAMPLES = examples("sdhub package ./out -o out.zip")
PUSH_EXAMPLES = examples("sdhub push ./out me/my-variant --private", "sdhub push ./out demo/mine --hub local")

Folder = Annotated[Path, typer.Argument(help="A folder.", exists=True, file_okay=False)]


def package(
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="The zip to write.")],
    json: options.Json = False,
) -> None:
    """Pack a folder into a reproducible zip: the same files give the same bytes."""
    from sdhub.publishing.package import pack

    packed = pack(folder, output, progress=ConsoleProgress())
    if json:
        emit({"path": str(output), "sha256": packed.sha256, "bytes": packed.bytes})
    else:
        say(f"{packed.sha256}  {output}  ({size(packed.bytes)})")


def push(
    folder: Folder,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="NAMESPACE/NAME.")],
    hub: options.Hub = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    json: options.Json = False,
) -> None:
    """Upload a folder in one commit; what the repository has already is not uploaded again."""
    from sdhub.core.access import check_token
    from sdhub.core.endpoint import connect
    from sdhub.publishing.names import repository_id
    from sdhub.publishing.push import push as run

    namespace, _, name = repo.partition("/")
    repo_id = repository_id(namespace, name)
    with connect(hub) as at:
        check_token(at, namespace, propose=create_pr)
        pushed = run(
            folder,
            repo_id,
            hub=at,
            private=private,
            create_pr=create_pr,
            message=f"Upload {folder.name}",
            progress=ConsoleProgress(),
        )
    if json:
        emit({"status": pushed.status, "url": pushed.url, "commit": pushed.commit, "bytes": pushed.uploaded_bytes})
    else:
        from sdhub.cli.reports import ended, show_pages

        say(f"{pushed.status}: {repo_id if ended(hub) else pushed.url} ({size(pushed.uploaded_bytes)} uploaded)")
        show_pages([pushed.pull_request_url or pushed.url], hub)
