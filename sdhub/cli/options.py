"""Options that several commands take, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sdhub.evidence.budget import Budget
    from sdhub.recipes.adjust import Adjustment

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
ControlNets = Annotated[
    list[str] | None,
    typer.Option(
        "--controlnet",
        metavar="ID_OR_FOLDER",
        help="Core ML: add this ControlNet, and a UNet that takes what it gives. May be repeated.",
    ),
]
SafetyChecker = Annotated[
    bool, typer.Option("--safety-checker", help="Core ML: add the checkpoint's safety checker.")
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
Device = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="Where torch computes: auto, cpu, cuda, cuda:1, …, mps or xpu."),
]
OpenVINODevice = Annotated[
    str | None,
    typer.Option("--openvino-device", metavar="NAME", help="Where OpenVINO variants are opened: CPU, GPU or NPU."),
]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help='Evidence prompts: a JSON list of texts or {"text", "seed"}.'),
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, max=1000, help="Sampling steps.")]
Guidance = Annotated[float | None, typer.Option("--guidance", min=0, max=100, help="Guidance scale.")]
Evidence = Annotated[
    str | None,
    typer.Option(
        "--evidence",
        metavar="LEVEL",
        help="How long variants are measured: quick (5 minutes a checkpoint), standard (20), full (as long as it "
        "takes). Named prompts or steps are drawn whatever they take.",
        show_default="standard",
    ),
]
EvidenceMinutes = Annotated[
    float | None,
    typer.Option("--evidence-minutes", metavar="N", help="That many minutes instead.", show_default=False),
]
License = Annotated[
    str | None,
    typer.Option("--license", metavar="ID", help="The source's licence, where it does not state one."),
]
Fast = Annotated[bool, typer.Option("--fast", help="Without calibration: sooner, and further from the original.")]
Calibrations = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="LEVEL",
        help="How often the denoiser is run to calibrate it: quick, standard, full.",
        show_default="standard",
    ),
]
Attentions = Annotated[
    list[str] | None,
    typer.Option(
        "--attention",
        metavar="NAME",
        help="Core ML: split_einsum (every device), split_einsum_v2, original (GPU). May be repeated.",
    ),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        metavar="WIDTHxHEIGHT",
        help="A fixed size in pixels, for graphs with fixed shapes. May be repeated.",
    ),
]
Chunk = Annotated[
    bool, typer.Option("--chunk", help="Core ML: add the UNet in two halves, which iPhones load one by one.")
]
Static = Annotated[
    str | None,
    typer.Option(
        "--static",
        metavar="BATCHxHEIGHTxWIDTH",
        help="OpenVINO: fix all shapes, the number of pictures too, as NPUs need it, e.g. 1x768x512.",
    ),
]
MinPsnr = Annotated[
    float | None,
    typer.Option(
        "--min-psnr",
        metavar="DB",
        min=1,
        max=100,
        help="OpenVINO: treat as many layers more gently as it takes for pictures to have this PSNR.",
    ),
]


def adjustment(
    fast: bool,
    attention: list[str] | None,
    size: list[str] | None,
    chunk: bool = False,
    static: str | None = None,
    min_psnr: float | None = None,
    calibration: str | None = None,
) -> Adjustment:
    """What the options say. Raises UsageError."""
    from typing import get_args

    from sdhub.core.errors import UsageError
    from sdhub.core.nearly import meant
    from sdhub.recipes.adjust import Adjustment, parse_size, parse_static
    from sdhub.recipes.recipe import Attention

    known = get_args(Attention)
    for name in attention or ():
        if name not in known:
            raise UsageError(f"no attention is called {name[:40]!r}", hint=meant(name, known))
    chosen = tuple(name for name in known if name in (attention or ()))
    if size and static:
        raise UsageError("--size and --static both fix the size", hint="give one of them")
    batch, fixed = parse_static(static) if static else (0, None)
    sizes = (fixed,) if fixed else tuple(parse_size(each) for each in size or ())
    return Adjustment(
        fast=fast,
        attention=chosen,
        sizes=sizes,
        chunked=chunk,
        batch=batch,
        calibration=calibration or "standard",
        min_psnr=min_psnr,
    )


def budget(level: str | None, minutes: float | None) -> Budget:
    """What the options say. Raises UsageError."""
    from typing import cast

    from sdhub.evidence.budget import Budget, Level

    return Budget(cast("Level", level or "standard"), minutes)
