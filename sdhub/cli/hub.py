"""`sdhub hub serve`: the embedded Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from sdhub.cli.console import say
from sdhub.cli.examples import examples
from sdhub.core.nextsteps import LOCAL_PORT

app = typer.Typer(
    help="The embedded Hub: repositories on this machine, for unmodified Hub clients.", no_args_is_help=True
)


@app.command(epilog=examples("sdhub hub serve", "HF_ENDPOINT=http://127.0.0.1:8420 python my_script.py"))
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but loopback opens it to others.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = LOCAL_PORT,
    root: Annotated[Path | None, typer.Option(help="Where it keeps its data (default: SDHUB_HOME/hub).")] = None,
    users: Annotated[
        Path | None, typer.Option(help="JSON list of users and tokens; without it any token may write.")
    ] = None,
    spaces: Annotated[
        Literal["present", "own"] | None,
        typer.Option(
            metavar="present|own",
            help="Run the apps of Spaces, in the present environment or in ones made from their requirements.txt. "
            "That is running the code of all who may write here.",
        ),
    ] = None,
    jobs: Annotated[
        bool,
        typer.Option(
            "--jobs", help="Run jobs on this machine, which is running the code of all who may write here."
        ),
    ] = False,
) -> None:
    """Serve the embedded Hub until interrupted."""
    from sdhub.core.errors import HubError
    from sdhub.core.work import home
    from sdhub.hub.errors import StartError
    from sdhub.hub.server import serve as run

    try:
        run(
            root or home() / "hub",
            host=host,
            port=port,
            users=users,
            run_spaces=spaces,
            run_jobs=jobs,
            on_ready=_tell,
        )
    except StartError as error:
        raise HubError(str(error), hint="another one may be running: choose a --port") from None


def _tell(url: str) -> None:
    say(f"The embedded Hub is at {url} (Ctrl-C ends it)")
    say(f"For any Hub client: HF_ENDPOINT={url} HF_TOKEN=local")
    sys.stdout.flush()
