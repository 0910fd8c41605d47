"""Options that several commands take, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A Hub id (org/name, org/name@revision), a diffusers folder, a .safetensors file, or demo, "
        "the built-in checkpoint.",
        show_default=False,
    ),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="ID_OR_FILE:SCALE",
        help="Fuse this LoRA first; the scale may be left away. May be repeated.",
    ),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="ID_OR_FOLDER",
        help="Where a single file's configs and tokenizer come from (default: the family's own repository).",
    ),
]
Variants = Annotated[
    list[str] | None,
    typer.Option(
        "--variant", "-v", metavar="NAME", help="A variant to make, e.g. openvino-int8. May be repeated."
    ),
]
Recipe = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="Make what this recipe says, instead of a preset."),
]
Hub = Annotated[
    str | None,
    typer.Option(
        "--hub",
        metavar="local|URL",
        help="local is the embedded Hub. Default: HF_ENDPOINT, else huggingface.co.",
    ),
]
To = Annotated[
    str | None,
    typer.Option("--to", metavar="NAMESPACE", help="User or organization to publish under (default: yours)."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help='Evidence prompts: a JSON list of texts or {"text", "seed"}.'),
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, max=1000, help="Sampling steps.")]
Guidance = Annotated[float | None, typer.Option("--guidance", min=0, max=100, help="Guidance scale.")]
License = Annotated[
    str | None,
    typer.Option("--license", metavar="ID", help="The source's licence, where it does not state one."),
]
