"""`sdhub space`: demos of published variants."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from sdhub.cli import options
from sdhub.cli.console import ConsoleProgress, emit, say
from sdhub.cli.examples import examples
from sdhub.core import nextsteps

if TYPE_CHECKING:
    from sdhub.spaces.deploy import Deployed

app = typer.Typer(help="Demo Spaces of published variants.", no_args_is_help=True)


@app.command(
    epilog=examples(
        "sdhub space deploy me/model-openvino-int8",
        "sdhub space deploy demo/emoji-sd-openvino-int8 --hub local",
        "sdhub space deploy me/model-openvino-int8 me/model-openvino-fp16 --to me/try-model --private",
    )
)
def deploy(
    repos: Annotated[list[str], typer.Argument(metavar="REPO…", help="Published variants, as NAMESPACE/NAME.")],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="NAMESPACE/NAME", help="The Space (default: beside the first REPO)."),
    ] = None,
    hardware: Annotated[
        str, typer.Option("--hardware", metavar="NAME", help="cpu-basic is free; SDNQ variants need a GPU.")
    ] = "cpu-basic",
    private: Annotated[bool, typer.Option("--private", help="Make the Space private.")] = False,
    secret: Annotated[
        list[str] | None,
        typer.Option("--secret", metavar="NAME", help="A secret of the Space, its value from this environment."),
    ] = None,
    hub: options.Hub = None,
    json: options.Json = False,
) -> None:
    """Create or update a Space that draws with published variants, and wait until it runs."""
    from sdhub.core.endpoint import connect
    from sdhub.spaces.publish import deploy_demo

    with connect(hub) as at:
        deployed = deploy_demo(
            repos,
            hub=at,
            to=to,
            hardware=hardware,
            private=private,
            secrets={name: _value(name) for name in secret or ()},
            progress=ConsoleProgress(),
        )
    _show(deployed, hub, json=json)


@app.command(
    epilog=examples(
        "sdhub space publisher me/publisher",
        "sdhub space publisher me/publisher --secret WEBHOOK_SECRET --secret HF_TOKEN --variable WEBHOOK_NAMESPACE=me",  # noqa: E501
    )
)
def publisher(
    repo: Annotated[str, typer.Argument(metavar="NAMESPACE/NAME", help="The Space.")],
    hardware: Annotated[str, typer.Option("--hardware", metavar="NAME", help="cpu-basic is free.")] = "cpu-basic",
    private: Annotated[bool, typer.Option("--private", help="Make the Space private.")] = False,
    secret: Annotated[
        list[str] | None,
        typer.Option("--secret", metavar="NAME", help="A secret of the Space, its value from this environment."),
    ] = None,
    variable: Annotated[
        list[str] | None, typer.Option("--variable", metavar="NAME=VALUE", help="A variable of the Space.")
    ] = None,
    hub: options.Hub = None,
    json: options.Json = False,
) -> None:
    """Create or update a Space that publishes variants from a browser and by webhook."""
    from sdhub.core.access import check_token
    from sdhub.core.endpoint import connect
    from sdhub.spaces.deploy import deploy as run
    from sdhub.spaces.sources import space_files

    with connect(hub) as at:
        check_token(at, repo.partition("/")[0])
        deployed = run(
            repo,
            space_files("publisher"),
            hub=at,
            hardware=hardware,
            private=private,
            secrets={name: _value(name) for name in secret or ()},
            variables=dict(_pair(text) for text in variable or ()),
            progress=ConsoleProgress(),
        )
    _show(deployed, hub, json=json)


def _show(deployed: Deployed, hub: str | None, *, json: bool) -> None:
    if json:
        emit(deployed.document())
    else:
        tell(deployed, hub)


def tell(deployed: Deployed, hub: str | None) -> None:
    """Say where a Space is, and where its app answers."""
    from sdhub.cli.reports import ended, show_pages

    where = urlsplit(deployed.url).path.strip("/") if ended(hub) else deployed.url
    say(f"Space {deployed.status}, {deployed.stage.lower()}: {where}")
    if deployed.app:
        say(f"  the app answers at {deployed.app}")
    elif hub == "local":
        say(f"  have its app run: {nextsteps.serve_spaces(deployed.url)}")
    show_pages([deployed.url], hub)


def _pair(text: str) -> tuple[str, str]:
    from sdhub.core.errors import UsageError

    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text[:80]!r} sets nothing", hint="give NAME=VALUE")
    return name, value


def _value(name: str) -> str:
    from sdhub.core.errors import UsageError

    value = os.environ.get(name)
    if not value:
        raise UsageError(f"the environment has no {name}", hint=f"set it first: export {name}=…")
    return value
