"""Adjustments of a preset that leave its formats alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdhub.errors import UsageError
from sdhub.recipes.recipe import Attention, Recipe, Side

_SIZE = re.compile(r"(\d{2,4})x(\d{2,4})")


@dataclass(frozen=True)
class Adjustment:
    """`fast`: without calibration. `attention`, `sizes`: instead of the preset's, where any are given.

    A single size is also the one that is calibrated at.
    """

    fast: bool = False
    attention: tuple[Attention, ...] = ()
    sizes: tuple[tuple[Side, Side], ...] = ()

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe, adjusted."""
        found = recipe.nearest() if self.fast else recipe
        update: dict[str, object] = {}
        if self.attention:
            update["attention"] = self.attention
        if self.sizes:
            update["sizes"] = self.sizes
        if len(self.sizes) == 1 and found.calibration:
            width, height = self.sizes[0]
            update["calibration"] = found.calibration.model_copy(update={"width": width, "height": height})
        return found.model_copy(update=update) if update else found


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "512x768", in pixels. Raises UsageError."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise UsageError(f"{text[:40]!r} is no size", hint="WIDTHxHEIGHT in pixels, such as 512x768")
    return int(found[1]), int(found[2])
