"""`sdhub plan`: what publish would do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
    calibration: options.Calibrations = None,
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
    evidence: options.Evidence = None,
    evidence_minutes: options.EvidenceMinutes = None,
    on: elsewhere.On = None,
    timeout: elsewhere.Timeout = None,
    json: options.Json = False,
) -> None:
    """Say what publish would do: files, bytes, memory, minutes, repositories. Changes nothing."""
    from sdhub.checkpoint.resolve import resolve
    from sdhub.workflow.options import Options
    from sdhub.workflow.plan import drawn_as, make_plan

    checkpoint = resolve(source, lora, config, controlnet, safety_checker)
    wanted = Options(
        namespace=to,
        variants=tuple(variant or ()),
        recipe=recipe,
        adjustment=options.adjustment(fast, attention, size, chunk, static, min_psnr, calibration),
        budget=options.budget(evidence, evidence_minutes),
    )
    made = make_plan(checkpoint, drawn_as(wanted, checkpoint, prompts, steps, guidance))
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
    said = {
        "source": made.checkpoint.id,
        "reads": f"{download['files']} files, {console.size(download['bytes'])} of weights",
        "evidence": f"{_drawn(document['budget'])}, guidance {made.sampling.guidance:g}",
        "takes": _takes(document["budget"]),
    }
    if document["budget"]["more"]:
        more = document["budget"]["more"]
        said["more"] = f"{_drawn(more)}: with --evidence-minutes {math.ceil(more['minutes'])}"
    facts(said)
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


def _drawn(drawn: Mapping[str, Any]) -> str:
    count = drawn["prompts"]
    prompts = f"{count} {'prompt' if count == 1 else 'prompts'}"
    return f"{prompts}, {drawn['steps']} steps, {drawn['width']} × {drawn['height']} pixels"


def _takes(budget: Mapping[str, Any]) -> str:
    """The forecast beside the budget."""
    minutes = f"about {budget['forecast_minutes']:g} minutes"
    if budget["minutes"] is None:
        return minutes
    if budget["forecast_minutes"] > budget["minutes"]:
        return f"{minutes}, more than the {budget['minutes']:g} it may: less shows nothing"
    return f"{minutes} of the {budget['minutes']:g} it may"
