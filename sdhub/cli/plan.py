"""`sdhub plan`: what publish would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from sdhub.cli import console, elsewhere, options
from sdhub.cli.console import emit, facts, say, table
from sdhub.cli.examples import examples

if TYPE_CHECKING:
    from sdhub.workflow.plan import Plan

EXAMPLES = examples(
    "sdhub plan demo",
    "sdhub plan org/model --variant openvino-int8 --to me --json",
    "sdhub plan org/model --on hf-jobs",
)


def plan(
    ctx: typer.Context,
    source: options.Source,
    variant: options.Variants = None,
    recipe: options.Recipe = None,
    fast: options.Fast = False,
    attention: options.Attentions = None,
    size: options.Sizes = None,
    static: options.Static = None,
    chunk: options.Chunk = False,
    min_psnr: options.MinPsnr = None,
    to: options.To = None,
    lora: options.Loras = None,
    controlnet: options.ControlNets = None,
    safety_checker: options.SafetyChecker = False,
    config: options.Config = None,
    prompts: options.Prompts = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    on: elsewhere.On = None,
    timeout: elsewhere.Timeout = None,
    json: options.Json = False,
) -> None:
    """Say what publish would do: files, bytes, memory, minutes, repositories. Changes nothing."""
    from sdhub.checkpoint.resolve import resolve
    from sdhub.workflow.options import Options
    from sdhub.workflow.plan import make_plan, sampling_for

    checkpoint = resolve(source, lora, config, controlnet, safety_checker)
    wanted = Options(
        namespace=to,
        variants=tuple(variant or ()),
        recipe=recipe,
        adjustment=options.adjustment(fast, attention, size, chunk, static, min_psnr),
        sampling=sampling_for(checkpoint, prompts=prompts, steps=steps, guidance=guidance),
    )
    made = make_plan(checkpoint, wanted)
    jobs = elsewhere.plan(ctx, wanted, on, timeout) if on else []
    if json:
        emit(made.document() | ({"jobs": [each.document() for each in jobs]} if on else {}))
        return
    show(made)
    if on:
        elsewhere.show_jobs(jobs)


def show(made: Plan) -> None:
    """The plan for people."""
    document = made.document()
    download = document["download"]
    evidence = made.sampling
    facts(
        {
            "source": made.checkpoint.id,
            "reads": f"{download['files']} files, {console.size(download['bytes'])} of weights",
            "evidence": f"{len(evidence.prompts)} prompts, {evidence.steps} steps, "
            f"guidance {evidence.guidance:g}, {evidence.width} × {evidence.height} pixels",
        }
    )
    say("")
    rows = [
        [
            each["name"],
            each["repo"],
            console.size(each["bytes"]),
            console.size(each["peak_bytes"]),
            f"{each['minutes']:g}",
        ]
        for each in document["variants"]
    ]
    table(["variant", "repository", "size", "memory", "minutes"], rows, right=(2, 3, 4))
    say("")
    say("Sizes, memory and minutes are forecasts for two cores; nothing was changed.")
