"""What a card's author tells of the model: the Hub's `widget` prompts, `inference.parameters`, `base_model`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_PROMPTS, MAX_TEXT, MAX_BASES = 16, 300, 16


@dataclass(frozen=True)
class CardDefaults:
    """What a card shows; None or empty where it does not. `bases`: the models that it was made of."""

    prompts: tuple[str, ...] = ()
    steps: int | None = None
    guidance: float | None = None
    bases: tuple[str, ...] = ()


def card_defaults(card: Mapping[str, Any]) -> CardDefaults:
    """From front matter, whose numbers may be text; what is no usable value is left out."""
    inference = card.get("inference")
    parameters = inference.get("parameters") if isinstance(inference, Mapping) else None
    if not isinstance(parameters, Mapping):
        parameters = {}
    steps = _number(parameters.get("num_inference_steps"), 1, 200)
    return CardDefaults(
        prompts=_prompts(card.get("widget")),
        steps=int(steps) if steps else None,
        guidance=_number(parameters.get("guidance_scale"), 0, 50),
        bases=_bases(card.get("base_model")),
    )


def _bases(given: Any) -> tuple[str, ...]:
    entries = given if isinstance(given, list) else [given]
    return tuple(entry for entry in entries if isinstance(entry, str))[:MAX_BASES]


def _prompts(widget: Any) -> tuple[str, ...]:
    entries = widget if isinstance(widget, list) else []
    texts = [entry.get("text") if isinstance(entry, Mapping) else entry for entry in entries]
    lines = [" ".join(text.split()) for text in texts if isinstance(text, str)]
    usable = [line for line in lines if 0 < len(line) <= MAX_TEXT and line.isprintable()]
    return tuple(dict.fromkeys(usable))[:MAX_PROMPTS]


def _number(value: Any, low: float, high: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and low <= number <= high else None
