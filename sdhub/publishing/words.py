"""Figures and recipes in words, for cards."""

from __future__ import annotations

import math
from collections.abc import Mapping
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


def psnr(figures: Mapping[str, Any], key: str = "psnr_db") -> str:
    """A PSNR in dB, or "identical" where there is no difference."""
    return "identical" if identical(figures, key) else figure(figures.get(key), 1, "dB")


def identical(figures: Mapping[str, Any], key: str) -> bool:
    """Whether a PSNR is null because it is infinite, and not because it was not measured."""
    return figures.get(key) is None and (figures.get("identical") is True or number(figures.get("ssim")) == 1)


def treatment(document: Mapping[str, Any]) -> str:
    """A recipe's treatment of one component or layer: its scheme and settings."""
    scheme = document.get("scheme")
    if scheme == "float":
        return f"kept in {document.get('dtype', 'floating point')}"
    if scheme == "affine":
        grid = "symmetric" if document.get("symmetric") else "scale and zero point"
        group = document.get("group_size")
        per = f"groups of {group} input channels" if group else "each output channel"
        return f"{document.get('bits')}-bit integer weights, {grid} for {per}"
    settings = [f"{key} {value}" for key, value in sorted(document.items()) if key != "scheme"]
    return ", ".join([str(scheme or "unknown scheme"), *settings])


def exceptions(component: Mapping[str, Any]) -> str:
    """How many layers are treated otherwise, grouped by treatment; empty where none is."""
    layers = component.get("layers")
    if not isinstance(layers, Mapping):
        return ""
    counts: dict[str, int] = {}
    for layer in layers.values():
        words = treatment(layer) if isinstance(layer, Mapping) else str(layer)
        counts[words] = counts.get(words, 0) + 1
    return "; ".join(f"{n} {'layer' if n == 1 else 'layers'} {words}" for words, n in sorted(counts.items()))
