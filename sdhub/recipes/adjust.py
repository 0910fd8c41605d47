"""Adjustments of a preset that leave its formats alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdhub.core.errors import UnsupportedError, UsageError
from sdhub.recipes.recipe import Attention, Recipe, Side

_SIZE = re.compile(r"(\d{2,4})x(\d{2,4})")
_STATIC = re.compile(r"(\d{1,2})x(\d{2,4})x(\d{2,4})")


@dataclass(frozen=True)
class Adjustment:
    """`fast`: without calibration. `attention`, `sizes`: instead of the preset's, where any are given. `chunked`:
    with the denoiser in two halves as well. `batch`: pictures at a time that fixed shapes are for. `min_psnr`: the
    least PSNR of pictures in dB; as few layers are spared as reach it, which has to be measured, so that here only
    the name says it.

    A single size is also the one that is calibrated at.
    """

    fast: bool = False
    attention: tuple[Attention, ...] = ()
    sizes: tuple[tuple[Side, Side], ...] = ()
    chunked: bool = False
    batch: int = 0
    min_psnr: float | None = None

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe, adjusted. Raises UnsupportedError for a floor of quality where nothing is spared."""
        found = recipe.nearest() if self.fast else recipe
        update: dict[str, object] = {}
        if self.attention:
            update["attention"] = self.attention
        if self.chunked:
            update["chunked"] = True
        if self.batch:
            update["batch"] = self.batch
        if self.min_psnr is not None:
            if not found.spares:
                raise UnsupportedError(
                    f"{found.name} spares no layers, so no floor can be set",
                    hint="variants whose recipe has a share `spared` do",
                )
            update["name"] = f"{found.name}-min{self.min_psnr:g}"
        if self.sizes:
            update["sizes"] = self.sizes
        if len(self.sizes) == 1 and found.calibration:
            width, height = self.sizes[0]
            update["calibration"] = found.calibration.model_copy(update={"width": width, "height": height})
        return found.model_copy(update=update) if update else found


AS_IT_IS = Adjustment()


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "512x768", in pixels. Raises UsageError."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise UsageError(f"{text[:40]!r} is no size", hint="WIDTHxHEIGHT in pixels, such as 512x768")
    return int(found[1]), int(found[2])


def parse_static(text: str) -> tuple[int, tuple[int, int]]:
    """Pictures at a time and (width, height) of "1x768x512": batch, height, width. Raises UsageError."""
    found = _STATIC.fullmatch(text)
    if not found:
        raise UsageError(f"{text[:40]!r} is no shape", hint="BATCHxHEIGHTxWIDTH, such as 1x768x512")
    if found[1] != "1":
        raise UsageError(f"{text}: variants are measured one picture at a time", hint=f"1x{found[2]}x{found[3]}")
    return 1, (int(found[3]), int(found[2]))
