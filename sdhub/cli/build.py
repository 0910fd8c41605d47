"""`sdhub build`: one variant into a folder, nothing published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sdhub.cli import console, elsewhere, options
from sdhub.cli.console import ConsoleProgress, emit, say
from sdhub.cli.examples import examples
from sdhub.core import nextsteps

EXAMPLES = examples(
    "sdhub build demo --variant openvino-int8 -o ./out", "sdhub build org/model --recipe mine.json -o ./out"
)


def build(
    ctx: typer.Context,
    source: options.Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make; it must not exist.")],
    variant: options.Variants = None,
    recipe: options.Recipe = None,
    fast: options.Fast = False,
    calibration: options.Calibrations = None,
    attention: options.Attentions = None,
    size: options.Sizes = None,
    static: options.Static = None,
    chunk: options.Chunk = False,
    min_psnr: options.MinPsnr = None,
    lora: options.Loras = None,
    controlnet: options.ControlNets = None,
    safety_checker: options.SafetyChecker = False,
    config: options.Config = None,
    device: options.Device = "auto",
    on: elsewhere.On = None,
    timeout: elsewhere.Timeout = None,
    detach: elsewhere.Detach = False,
    json: options.Json = False,
) -> None:
    """Build one variant into a folder and publish nothing."""
    from sdhub.checkpoint.resolve import resolve
    from sdhub.workflow.build import build as run

    built: dict[str, Any] | None
    if on:
        built = elsewhere.build(ctx, output, on, timeout, detach=detach, json=json)
    else:
        checkpoint = resolve(source, lora, config, controlnet, safety_checker)
        built = run(
            checkpoint,
            variant or (),
            output=output,
            recipe=recipe,
            adjustment=options.adjustment(fast, attention, size, chunk, static, min_psnr, calibration),
            device=device,
            progress=ConsoleProgress(),
        )
    if built is None:
        return
    if json:
        emit(built)
    else:
        say(f"{built['name']}: {console.size(built['bytes'])} in {output}")
        say(f"Try it: {nextsteps.generate(output, 'a prompt', 'picture.png')}")
