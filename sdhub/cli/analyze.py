"""`sdhub analyze`: mixed-bit recipes for a budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdhub.cli import console, elsewhere, options
from sdhub.cli.console import ConsoleProgress, emit, say
from sdhub.cli.examples import examples
from sdhub.core import nextsteps

if TYPE_CHECKING:
    from sdhub.recipes.recipe import Recipe
    from sdhub.workflow.analyze import Analyzed, Wanted

EXAMPLES = examples(
    "sdhub analyze demo --budget 4.5bits -o mixed.json",
    "sdhub analyze org/model --budget 1.4GB --curve curve.svg -o mixed.json",
    "sdhub analyze org/model --min-psnr 30 --device cuda -o mixed.json",
    "sdhub analyze ./my-finetune --start-from mixed.json -o mine.json",
)


def analyze(
    ctx: typer.Context,
    source: options.Source,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            metavar="SIZE",
            help="4.5bits for each weight, or 1.4GB or 800MB for the denoiser. May be repeated.",
        ),
    ] = None,
    min_psnr: Annotated[
        float | None, typer.Option("--min-psnr", metavar="DB", help="The smallest recipe that keeps this PSNR.")
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--start-from",
            metavar="FILE",
            help="Check this recipe, ours or Apple's, with a handful of calls and repair what no longer fits.",
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="NAME", help="Which recipe of an Apple file to start from.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", metavar="NAME", help="Whose treatments are chosen among (default: Core ML's)."),
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option("--widths", metavar="BITS", help="Palettes of these bits only, such as 1,2,4,6,8."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the recipe here, for publish --recipe."),
    ] = None,
    apple: Annotated[
        Path | None, typer.Option("--apple", metavar="FILE", help="Write the recipes in Apple's form as well.")
    ] = None,
    curve: Annotated[
        Path | None,
        typer.Option(
            "--curve", metavar="FILE", help="Draw PSNR over size as .svg or .png, checked at three sizes."
        ),
    ] = None,
    lora: options.Loras = None,
    config: options.Config = None,
    device: options.Device = "auto",
    on: elsewhere.On = None,
    timeout: elsewhere.Timeout = None,
    detach: elsewhere.Detach = False,
    json: options.Json = False,
) -> None:
    """Find the best treatment of each layer for a size, measured on the checkpoint's own trajectories."""
    from json import dumps

    from sdhub.checkpoint.resolve import resolve
    from sdhub.recipes.recipe import parse_recipe
    from sdhub.workflow.analyze import Wanted, parse_widths, starting_recipe
    from sdhub.workflow.analyze import analyze as run

    wanted = Wanted(
        backend=backend,
        budgets=tuple(budget or ()),
        min_psnr=min_psnr,
        start=starting_recipe(start_from, key, backend),
        curve=curve is not None,
        device=device,
        widths=parse_widths(widths),
    )
    _require_places(wanted, output, apple, curve)
    if on:
        document = elsewhere.analyze(ctx, on, timeout, detach=detach, json=json)
        if document and output is not None:
            _write_recipe(document["recipes"][0], output)
        if document and json:
            emit(document)
        elif document:
            _show([parse_recipe(dumps(each)) for each in document["recipes"]], document["calls"])
        return
    found = run(resolve(source, lora, config), wanted, ConsoleProgress())
    _write(found, output, apple, curve)
    if json:
        emit(found.document())
        return
    _show(found.recipes, found.analysis.calls)
    if output is not None:
        say(f"Publish it: {nextsteps.publish_recipe(source, output, lora or (), config)}")


def _require_places(wanted: Wanted, output: Path | None, apple: Path | None, curve: Path | None) -> None:
    """Raises UsageError where what is found could not be written."""
    from sdhub.core.errors import UsageError

    recipes = len(wanted.budgets) + (wanted.min_psnr is not None) + (wanted.start is not None)
    if output is not None and recipes != 1:
        raise UsageError("one recipe is written into a file", hint="give one budget, or use --json")
    for file in filter(None, (output, apple, curve)):
        if not file.parent.is_dir():
            raise UsageError(f"{file.parent} is no folder", hint="make it first")
    if curve is not None and curve.suffix not in {".svg", ".png"}:
        raise UsageError(f"{curve} is neither .svg nor .png", hint="name the curve so")


def _write_recipe(document: Mapping[str, Any], output: Path) -> None:
    import json

    output.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write(found: Analyzed, output: Path | None, apple: Path | None, curve: Path | None) -> None:
    from sdhub.analysis.apple import write_apple

    if output is not None:
        _write_recipe(found.recipes[0].document(), output)
    if apple is not None:
        apple.write_text(write_apple(found.apple()), encoding="utf-8")
    if curve is not None:
        found.draw(curve)


def _show(recipes: Iterable[Recipe], calls: int) -> None:
    rows = []
    for recipe in recipes:
        about = recipe.analysis
        if about is None:
            continue
        measured = "" if about.measured_db is None else f"{about.measured_db:.1f} dB"
        rows.append(
            [
                recipe.name,
                f"{about.bits:.2f}",
                f"{about.model_bits:.2f}",
                console.size(about.bytes),
                f"{about.predicted_db:.1f} dB",
                measured,
            ]
        )
        if about.start is not None:
            say(f"repaired: {', '.join(about.repaired) or 'nothing; the recipe fits'}")
    columns = ["recipe", "bits per weight", "per parameter", "denoiser", "predicted", "measured"]
    console.table(columns, rows, right=range(1, 6))
    say(f"{calls} calls of the denoiser")
