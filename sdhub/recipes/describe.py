"""What a recipe does, in words."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sdhub.recipes.recipe import Recipe, Treatment


def described(recipe: Recipe) -> dict[str, Any]:
    """Of each component its treatments, each with the number of layers named for it (None: all others)."""
    return {
        "name": recipe.name,
        "backend": recipe.backend,
        "sha256": recipe.sha256,
        "calibration": _calibration(recipe),
        "shapes": _shapes(recipe),
        "components": [
            {
                "component": name,
                "treatments": [
                    {"treatment": words(component.default), "layers": None},
                    *(
                        {"treatment": treatment, "layers": count}
                        for treatment, count in Counter(map(words, component.layers.values())).most_common()
                    ),
                ],
            }
            for name, component in recipe.components.items()
        ],
    }


def words(treatment: Treatment) -> str:
    """A treatment's scheme, then its fields: "palette, bits 4, …"."""
    fields = treatment.model_dump(mode="json")
    scheme = str(fields.pop("scheme"))
    parts = [f"{name.replace('_', ' ')} {_value(value)}" for name, value in fields.items() if value is not None]
    return ", ".join([scheme, *parts])


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _calibration(recipe: Recipe) -> str:
    found = recipe.calibration
    if found is None:
        return "none"
    return f"{len(found.prompts)} prompts, {found.steps} steps, {found.width} × {found.height} pixels"


def _shapes(recipe: Recipe) -> str:
    sizes = ", ".join(f"{width} × {height}" for width, height in recipe.sizes) or "the checkpoint's own"
    parts = [sizes, *recipe.attention]
    if recipe.chunked:
        parts.append("in two halves as well")
    if recipe.batch:
        parts.append(f"{recipe.batch} picture at a time")
    return ", ".join(parts)
