"""Figures and recipes in words, for cards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

NOT_MEASURED = "not measured"


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def figure(value: Any, digits: int = 2, unit: str = "") -> str:
    """A figure with its unit, or "not measured"."""
    known = number(value)
    return NOT_MEASURED if known is None else f"{known:.{digits}f}{unit and ' '}{unit}"


def significant(value: Any, digits: int = 3, unit: str = "") -> str:
    """A figure with so many significant digits, without an exponent."""
    known = number(value)
    if known is None:
        return NOT_MEASURED
    rounded = float(f"{known:.{digits - 1}e}")
    places = 0 if rounded == 0 else digits - 1 - math.floor(math.log10(abs(rounded)))
    return figure(rounded, min(max(places, 0), 9), unit)


def size(value: Any) -> str:
    """Bytes in decimal units, as the Hub shows them."""
    known = number(value)
    if known is None:
        return NOT_MEASURED
    if known < 1000:
        return f"{known:.0f} B"
    for unit in ("kB", "MB", "GB"):
        known /= 1000
        if known < 999.5 or unit == "GB":
            return significant(known, 3, unit)
    raise AssertionError("unreachable")


def speed(latency: Any) -> str:
    """Times the base's speed, from the evidence's `latency`."""
    ratio = times(latency.get("ratio") if isinstance(latency, Mapping) else None)
    return f"speed {ratio}" if ratio == NOT_MEASURED else f"{ratio} the speed"


def times(ratio: Any) -> str:
    """A ratio: "1.96 times"."""
    known = number(ratio)
    return f"{significant(known)} times" if known is not None and known > 0 else NOT_MEASURED


def psnr(figures: Mapping[str, Any], key: str = "psnr_db") -> str:
    """A PSNR in dB, or "identical" where there is no difference."""
    return "identical" if identical(figures, key) else figure(figures.get(key), 1, "dB")


def identical(figures: Mapping[str, Any], key: str) -> bool:
    """Whether a PSNR is null because it is infinite, and not because it was not measured."""
    return figures.get(key) is None and (figures.get("identical") is True or number(figures.get("ssim")) == 1)


def treatment(document: Mapping[str, Any]) -> str:
    """A recipe's treatment of one component or layer: its scheme and settings."""
    describe = _SCHEMES.get(str(document.get("scheme")))
    if describe is None:
        settings = [f"{key} {value}" for key, value in sorted(document.items()) if key != "scheme"]
        return ", ".join([str(document.get("scheme") or "unknown scheme"), *settings])
    return describe(document) + _rounding(document)


def _float(document: Mapping[str, Any]) -> str:
    return f"kept in {document.get('dtype', 'floating point')}"


def _affine(document: Mapping[str, Any]) -> str:
    grid = "symmetric" if document.get("symmetric") else "scale and zero point"
    group = document.get("group_size")
    per = f"groups of {group} input channels" if group else "each output channel"
    higher_precision = number(document.get("higher_precision"))
    kept = f"; {higher_precision:.0%} most sensitive kept in higher precision" if higher_precision else ""
    return f"{document.get('bits')}-bit integer weights, {grid} for {per}{_activations(document)}{kept}"


def _palette(document: Mapping[str, Any]) -> str:
    bits, group = document.get("bits"), document.get("group_size")
    values = 2**bits if isinstance(bits, int) and 0 < bits <= 8 else "a few"
    per = f"every {group} output channels" if group else "each layer"
    return f"{bits}-bit palette: {values} values found by k-means for {per}"


def _low_rank(document: Mapping[str, Any]) -> str:
    rank, group = document.get("rank"), document.get("group_size")
    per = f"groups of {group} input channels" if group else "each output channel"
    branch = f"a 16-bit branch of rank {rank} beside " if rank else ""
    residual = f"{branch}{document.get('residual')} weights with a scale for {per}"
    smoothed = ", outliers of the inputs moved into the weights first" if document.get("smoothing") else ""
    return f"{residual}{_activations(document)}{smoothed}"


def _activations(document: Mapping[str, Any]) -> str:
    kind = document.get("activations", "float")
    return "" if kind == "float" else f", inputs rounded to {kind} while it runs"


def _rounding(document: Mapping[str, Any]) -> str:
    gptq = document.get("rounding") == "gptq"
    return ", rounded by GPTQ" if gptq else ""


_SCHEMES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "float": _float,
    "affine": _affine,
    "palette": _palette,
    "low_rank": _low_rank,
}


def merging(component: Mapping[str, Any]) -> str:
    """Token merging of a component; empty where there is none."""
    share = number(component.get("token_merging"))
    return f"self-attention at the highest resolution merges {share:.0%} of its tokens" if share else ""


def recipe_notes(recipe: Mapping[str, Any]) -> list[str]:
    """What a recipe says of the whole: calibration, sizes, attention; a sentence each."""
    notes = []
    calibration = recipe.get("calibration")
    if isinstance(calibration, Mapping):
        prompts = calibration.get("prompts")
        count = len(prompts) if isinstance(prompts, (list, tuple)) else 0
        notes.append(
            f"Calibrated on {count} {'prompt' if count == 1 else 'prompts'} of {calibration.get('steps')} steps, "
            f"{calibration.get('recorded')} of them looked at ({_calls(count, calibration)}), "
            f"guidance {calibration.get('guidance')}, "
            f"{calibration.get('width')} × {calibration.get('height')} pixels, "
            f"seeds from {calibration.get('seed')}."
        )
    sizes = [f"{each[0]} × {each[1]}" for each in recipe.get("sizes") or () if len(each) == 2]
    if sizes:
        notes.append(f"Fixed sizes in pixels: {', '.join(sizes)}.")
    attention = [str(each) for each in recipe.get("attention") or ()]
    if attention:
        notes.append(f"Attention: {', '.join(attention)}.")
    return notes


def _calls(prompts: int, calibration: Mapping[str, Any]) -> str:
    recorded, steps = number(calibration.get("recorded")), number(calibration.get("steps"))
    known = None if recorded is None or steps is None else prompts * min(recorded, steps)
    return "calls unknown" if known is None else f"{known:.0f} calls of the denoiser in all"


def exceptions(component: Mapping[str, Any]) -> str:
    """How many layers are treated otherwise, grouped by treatment; empty where none is."""
    layers = component.get("layers")
    if not isinstance(layers, Mapping):
        return ""
    counts: dict[str, int] = {}
    default = component.get("default")
    for layer in layers.values():
        words = _beside(layer, default) if isinstance(layer, Mapping) else str(layer)
        counts[words] = counts.get(words, 0) + 1
    return "; ".join(f"{n} {'layer' if n == 1 else 'layers'} {words}" for words, n in sorted(counts.items()))


def _beside(layer: Mapping[str, Any], default: Any) -> str:
    """A layer's treatment; its bits alone where it is the component's in every other way."""
    if isinstance(default, Mapping) and {**layer, "bits": None} == {**default, "bits": None}:
        return f"at {layer.get('bits')} bit"
    return treatment(layer)
