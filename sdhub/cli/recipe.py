"""`sdhub recipe`: the documents that say how variants are made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdhub.cli import options
from sdhub.cli.console import emit, facts, say, table
from sdhub.cli.examples import examples

app = typer.Typer(help="Show, check and describe recipes.", no_args_is_help=True)


@app.command(epilog=examples("sdhub recipe schema > recipe.schema.json"))
def schema() -> None:
    """Print the JSON Schema of recipes."""
    from sdhub.recipes.recipe import json_schema

    emit(json_schema())


@app.command(epilog=examples("sdhub recipe show openvino-int8 demo > mine.json"))
def show(
    variant: Annotated[str, typer.Argument(help="A variant's name.")],
    source: options.Source,
) -> None:
    """Print the preset of a variant, spelled out for a checkpoint; edit it and pass it to `publish --recipe`."""
    from sdhub.checkpoint.resolve import resolve
    from sdhub.workflow.plan import choose

    ((_, recipe),) = choose(resolve(source), [variant], None)
    emit(recipe.document())


@app.command(epilog=examples("sdhub recipe check mine.json"))
def check(
    file: Annotated[Path, typer.Argument(help="A recipe.")],
    json: options.Json = False,
) -> None:
    """Check a recipe file and print its hash."""
    from sdhub.recipes.recipe import load_recipe

    recipe = load_recipe(file)
    if json:
        emit({"name": recipe.name, "backend": recipe.backend, "sha256": recipe.sha256})
    else:
        say(f"{recipe.name}: a valid recipe, sha256 {recipe.sha256}")


@app.command(epilog=examples("sdhub recipe describe mine.json", "sdhub recipe describe mine.json --json"))
def describe(
    file: Annotated[Path, typer.Argument(help="A recipe.")],
    json: options.Json = False,
) -> None:
    """Say what a recipe does to each component, in words."""
    from sdhub.recipes.describe import described
    from sdhub.recipes.recipe import load_recipe

    found = described(load_recipe(file))
    if json:
        emit(found)
        return
    facts({name: str(found[name]) for name in ("name", "backend", "sha256", "calibration", "shapes")})
    say("")
    rows = [
        [each["component"], row["treatment"], "all others" if row["layers"] is None else str(row["layers"])]
        for each in found["components"]
        for row in each["treatments"]
    ]
    table(["component", "treatment", "layers"], rows, right=[2])
