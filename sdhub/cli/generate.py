"""`sdhub generate`: a picture from any variant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdhub.cli import options
from sdhub.cli.console import ConsoleProgress, emit, say
from sdhub.cli.examples import examples

EXAMPLES = examples(
    'sdhub generate ./out "pizza" -o pizza.png',
    'sdhub generate demo/emoji-sd-openvino-int8 "red heart" --hub local --seed 7 -o heart.png',
)


def generate(
    variant: Annotated[
        str, typer.Argument(metavar="VARIANT", help="A variant's folder, or its repository on the Hub.")
    ],
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")] = Path("out.png"),
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the initial latents.")] = 0,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WIDTHxHEIGHT", help="In pixels (default: the variant's own).")
    ] = None,
    hub: options.Hub = None,
    device: options.Device = "auto",
    openvino_device: options.OpenVINODevice = None,
    json: options.Json = False,
) -> None:
    """Draw a picture with a variant on this machine."""
    from sdhub.recipes.adjust import parse_size
    from sdhub.workflow.variants import generate as run

    result = run(
        variant,
        prompt,
        output,
        seed=seed,
        steps=steps,
        guidance=guidance,
        size=parse_size(size) if size else None,
        hub=hub,
        device=device,
        runtime_device=openvino_device,
        progress=ConsoleProgress(),
    )
    if json:
        emit(result)
    else:
        drawn = f"{result['width']} × {result['height']}, {result['seconds']:.1f} s, seed {seed}"
        say(f"{output}: {drawn}, {result['device']} in {result['precision']}")
