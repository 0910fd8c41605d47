"""`sdhub analyze`: mixed-bit recipes for a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdhub.cli import console, options
from sdhub.cli.console import ConsoleProgress, emit, say
from sdhub.cli.examples import examples
from sdhub.core import nextsteps

if TYPE_CHECKING:
    from sdhub.recipes.recipe import Recipe
    from sdhub.workflow.analyze import Analyzed

EXAMPLES = examples(
    "sdhub analyze demo --budget 4.5bits -o mixed.json",
    "sdhub analyze org/model --budget 1.4GB --curve curve.svg -o mixed.json",
    "sdhub analyze org/model --min-psnr 30 --device cuda -o mixed.json",
    "sdhub analyze ./my-finetune --start-from mixed.json -o mine.json",
)


def analyze(
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
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="Where the denoiser runs: cpu, cuda or mps.")
    ] = "cpu",
    json: options.Json = False,
) -> None:
    """Find the best treatment of each layer for a size, measured on the checkpoint's own trajectories."""
    from sdhub.analysis.analysis import parse_budget
    from sdhub.checkpoint.resolve import resolve
    from sdhub.core.errors import UsageError
    from sdhub.workflow.analyze import Wanted, analyzable, require_device
    from sdhub.workflow.analyze import analyze as run

    budgets = tuple(budget or ()) or (() if min_psnr is not None or start_from else ("4.5bits",))
    if output is not None and len(budgets) + (min_psnr is not None) + (start_from is not None) != 1:
        raise UsageError("one recipe is written into a file", hint="give one budget, or use --json")
    for file in filter(None, (output, apple, curve)):
        if not file.parent.is_dir():
            raise UsageError(f"{file.parent} is no folder", hint="make it first")
    if curve is not None and curve.suffix not in {".svg", ".png"}:
        raise UsageError(f"{curve} is neither .svg nor .png", hint="name the curve so")
    for each in budgets:
        parse_budget(each)
    require_device(device)
    chooses = analyzable(backend).name
    checkpoint = resolve(source, lora, config)
    wanted = Wanted(
        backend=chooses,
        budgets=budgets,
        min_psnr=min_psnr,
        start=_start(start_from, key, chooses) if start_from else None,
        curve=curve is not None,
        device=device,
        widths=_widths(widths),
    )
    found = run(checkpoint, wanted, ConsoleProgress())
    _write(found, output, apple, curve)
    if json:
        emit(found.document())
    else:
        _show(found)
        if output is not None:
            say(f"Publish it: {nextsteps.publish_recipe(source, output, lora or (), config)}")


def _start(file: Path, key: str | None, backend: str) -> Recipe:
    """Our recipe, or one of Apple's as ours."""
    from sdhub.analysis.apple import load_apple
    from sdhub.core.errors import RecipeError
    from sdhub.recipes.recipe import load_recipe

    try:
        return load_recipe(file)
    except RecipeError as ours:
        try:
            return load_apple(file).recipe(key).as_recipe(backend)
        except RecipeError as theirs:
            raise (theirs if key else ours) from None


def _widths(text: str | None) -> tuple[int, ...]:
    from sdhub.core.errors import UsageError

    try:
        return tuple(sorted({int(part) for part in text.split(",")})) if text else ()
    except ValueError:
        raise UsageError(f"{text!r} are no widths", hint="such as 1,2,4,6,8") from None


def _write(found: Analyzed, output: Path | None, apple: Path | None, curve: Path | None) -> None:
    import json

    from sdhub.analysis.apple import write_apple

    if output is not None:
        text = json.dumps(found.recipes[0].document(), indent=2, ensure_ascii=False) + "\n"
        output.write_text(text, encoding="utf-8")
    if apple is not None:
        apple.write_text(write_apple(found.apple()), encoding="utf-8")
    if curve is not None:
        found.draw(curve)


def _show(found: Analyzed) -> None:
    rows = []
    for recipe in found.recipes:
        about = recipe.evidence
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
    say(f"{found.analysis.calls} calls of the denoiser")
