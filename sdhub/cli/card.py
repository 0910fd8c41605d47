"""`sdhub card`: the card of a variant that was made by other means than `publish`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sdhub.cli import options
from sdhub.cli.console import emit, talk
from sdhub.cli.examples import examples

EXAMPLES = examples(
    "sdhub card ./out --source demo --repo me/emoji-sd-openvino-int8 -o ./out/README.md",
    "sdhub card ./out --source org/model --repo me/mine",
)


def card(
    folder: Annotated[
        Path, typer.Argument(help="A variant's folder with its recipe.json.", exists=True, file_okay=False)
    ],
    source: Annotated[str, typer.Option("--source", metavar="SOURCE", help="What it was made of.")],
    repo: Annotated[str, typer.Option("--repo", metavar="REPO", help="Where it goes, as NAMESPACE/NAME.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write (default: standard output).")
    ] = None,
    lora: options.Loras = None,
    config: options.Config = None,
    license: options.License = None,
    json: options.Json = False,
) -> None:
    """Write the card of a variant's folder; figures that were not measured are marked so."""
    from sdhub.checkpoint.resolve import resolve
    from sdhub.publishing.names import repository_id
    from sdhub.workflow.card import card_of

    namespace, _, name = repo.partition("/")
    text = card_of(folder, resolve(source, lora, config), repository_id(namespace, name), license=license)
    if output is not None:
        output.write_text(text, encoding="utf-8", newline="\n")
    if json:
        emit({"card": text, "output": str(output) if output else None})
    elif output is None:
        sys.stdout.write(text)
    else:
        talk(f"{output}: {len(text.splitlines())} lines")
