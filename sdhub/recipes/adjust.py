"""Adjustments of a preset that leave its formats alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdhub.core.errors import UnsupportedError, UsageError
from sdhub.recipes.recipe import Attention, Recipe, Side

LEAST_DB, MOST_DB = 1, 100  # of pictures
_SIZE = re.compile(r"(\d{2,4})x(\d{2,4})")
_STATIC = re.compile(r"(\d{1,2})x(\d{2,4})x(\d{2,4})")


@dataclass(frozen=True)
class Adjustment:
    """What is changed of a preset. Raises UsageError for a PSNR that means nothing."""

    fast: bool = False
    """Without calibration."""
    attention: tuple[Attention, ...] = ()
    """Instead of the preset's, where any are given."""
    sizes: tuple[tuple[Side, Side], ...] = ()
    """(width, height) in pixels, instead of the preset's; a single one is also calibrated at."""
    chunked: bool = False
    """With the denoiser in two halves as well."""
    batch: int = 0
    """Pictures at a time that fixed shapes are for; 0 fixes none."""
    calibration: str = "standard"
    """How many calls of the denoiser calibration takes: quick, standard or full."""
    min_psnr: float | None = None
    """The least PSNR of pictures, in dB. As few layers stay in higher precision as meet it, which
    has to be measured, so that here only the name says it."""

    def __post_init__(self) -> None:
        if self.min_psnr is not None and not LEAST_DB <= self.min_psnr <= MOST_DB:
            raise UsageError(f"a PSNR of {self.min_psnr:g} dB means nothing", hint=f"from {LEAST_DB} to {MOST_DB}")

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe, adjusted. Raises UnsupportedError for a quality target where no layer could differ."""
        found = recipe.uncalibrated() if self.fast else recipe
        update: dict[str, object] = {}
        if self.attention:
            update["attention"] = self.attention
        if self.chunked:
            update["chunked"] = True
        if self.batch:
            update["batch"] = self.batch
        if self.min_psnr is not None:
            if not found.keeps_higher_precision:
                raise UnsupportedError(
                    f"{found.name} keeps no layers in higher precision, so no quality target can be set",
                    hint="variants whose recipe has a share `higher_precision` do",
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
