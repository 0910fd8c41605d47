"""`sdhub inspect`: what a source is, from JSON and headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdhub.cli import options
from sdhub.cli.console import emit, facts, say, size, table
from sdhub.cli.examples import examples

if TYPE_CHECKING:
    from sdhub.checkpoint.checkpoint import Checkpoint

EXAMPLES = examples(
    "sdhub inspect demo",
    "sdhub inspect stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdhub inspect ./my-finetune --json",
    "sdhub inspect model.safetensors --lora style.safetensors:0.8",
)


def inspect(
    source: options.Source,
    lora: options.Loras = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Say what a checkpoint is and which variants it can have. Downloads no weights."""
    from sdhub.checkpoint.resolve import resolve
    from sdhub.workflow.plan import possible

    checkpoint = resolve(source, lora, config)
    rows = possible(checkpoint)
    if json:
        emit(document(checkpoint, rows))
    else:
        _show(checkpoint, rows)


def document(checkpoint: Checkpoint, variants: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON form."""
    return {
        "id": checkpoint.id,
        "sha": checkpoint.sha,
        "family": checkpoint.family.name,
        "pipeline": checkpoint.pipeline,
        "components": [
            {
                "name": part.name,
                "class": part.class_name,
                "parameters": part.parameters,
                "bytes": part.bytes,
                "dtype": part.dtype or None,
            }
            for part in checkpoint.components
        ],
        "license": checkpoint.license.id if checkpoint.license else None,
        "gated": checkpoint.gated,
        "private": checkpoint.private,
        "prediction_type": checkpoint.prediction_type,
        "traits": sorted(checkpoint.traits),
        "notes": list(checkpoint.notes),
        "left_out": list(checkpoint.left_out),
        "loras": [{"ref": lora.ref, "scale": lora.scale} for lora in checkpoint.source.loras],
        "variants": variants,
    }


def _show(checkpoint: Checkpoint, variants: list[dict[str, Any]]) -> None:
    from sdhub.checkpoint.families import TRAITS

    loras = ", ".join(f"{each.name} × {each.scale:g}" for each in checkpoint.loras)
    facts(
        {
            "checkpoint": checkpoint.id + (f" @ {checkpoint.sha[:12]}" if checkpoint.sha else ""),
            "family": f"{checkpoint.family.title} ({checkpoint.pipeline})",
            "prediction": ", ".join([checkpoint.prediction_type, *checkpoint.said.words]),
            **({"LoRAs": loras} if loras else {}),
            "licence": checkpoint.license.id if checkpoint.license else "not stated",
            "access": ", ".join(
                word for word, true in (("private", checkpoint.private), ("gated", checkpoint.gated)) if true
            )
            or "open",
        }
    )
    for trait in sorted(checkpoint.traits):
        say(f"  {trait}: {TRAITS[trait]}")
    for note in checkpoint.notes:
        say(f"  {note}")
    for line in checkpoint.left_out:
        say(f"  leaves out of {line}")
    say("")
    weighty = [part for part in checkpoint.components if part.parameters]
    rows = [
        [part.name, part.class_name, f"{part.parameters / 1e6:,.1f} M", size(part.bytes), part.dtype]
        for part in weighty
    ]
    rows.append(["total", "", f"{sum(p.parameters for p in weighty) / 1e6:,.1f} M", size(checkpoint.bytes), ""])
    table(["component", "class", "parameters", "size", "dtype"], rows, right=(2, 3))
    say("")
    table(
        ["variant", "possible", "why not"],
        [[v["name"], "yes" if v["possible"] else "no", v["reason"] or ""] for v in variants],
    )
