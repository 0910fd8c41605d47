"""The contact sheet: what the base drew above what the variant drew, a column per prompt."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sdhub.evidence.compare import PromptFidelity
from sdhub.evidence.sampling import Sample

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

COLUMNS = 4
CELL_MIN, CELL_MAX = 192, 320
GAP, MARGIN, LABEL = 12, 24, 84
CAPTION_LINES = 2
INK, FAINT, PAPER, FRAME = (28, 30, 33), (105, 112, 120), (255, 255, 255), (222, 225, 229)
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 22, 15, 13


def contact_sheet(
    path: Path,
    base: Sequence[Sample],
    variant: Sequence[Sample],
    rows: Sequence[PromptFidelity],
    *,
    title: str,
    labels: tuple[str, str],
) -> None:
    """Write the PNG: bands of up to 4 columns, captions from the prompts, PSNR under each pair.

    The same samples give the same bytes.
    """
    from PIL import Image, ImageDraw

    sheet = _Sheet(len(base), base[0].image.shape)
    picture = Image.new("RGB", (sheet.width, sheet.height), PAPER)
    canvas = ImageDraw.Draw(picture)
    for line in _wrap(drawable(title), sheet.width - 2 * MARGIN, _font(TITLE_SIZE), 1):
        canvas.text((MARGIN, MARGIN), line, INK, font=_font(TITLE_SIZE))
    for number, (first, second, row) in enumerate(zip(base, variant, rows, strict=True)):
        left, top = sheet.place(number)
        if number % COLUMNS == 0:
            _labels(canvas, sheet, top, labels)
        _caption(canvas, (left, top), sheet.cell, row.text)
        for half, sample in enumerate((first, second)):
            spot = (left, top + sheet.caption + half * (sheet.cell_height + GAP // 2))
            picture.paste(_scaled(sample.image, sheet.cell, sheet.cell_height), spot)
            canvas.rectangle((*spot, spot[0] + sheet.cell - 1, spot[1] + sheet.cell_height - 1), outline=FRAME)
        under = top + sheet.caption + 2 * sheet.cell_height + GAP // 2 + 4
        canvas.text((left, under), _figures(row), FAINT, font=_font(SMALL_SIZE))
    picture.save(path, format="PNG", optimize=True)


def drawable(text: str) -> str:
    """The text on one line, without control, format and surrogate characters."""
    kept = "".join(
        " " if char.isspace() else char
        for char in text
        if unicodedata.category(char) not in HIDDEN or char.isspace()
    )
    return " ".join(kept.split())


HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn"}


class _Sheet:
    """The geometry, in pixels."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        height, width = shape[:2]
        grow = max(1, math.ceil(CELL_MIN / width))
        self.cell = min(width * grow, CELL_MAX) if width < CELL_MAX else CELL_MAX
        self.cell_height = round(self.cell * height / width)
        self.caption = CAPTION_LINES * (TEXT_SIZE + 4) + 4
        self.band = self.caption + 2 * self.cell_height + GAP // 2 + SMALL_SIZE + 2 * GAP
        columns = min(count, COLUMNS)
        self.width = 2 * MARGIN + LABEL + columns * self.cell + (columns - 1) * GAP
        self.height = 2 * MARGIN + TITLE_SIZE + GAP + math.ceil(count / COLUMNS) * self.band

    def place(self, number: int) -> tuple[int, int]:
        """Upper left corner of a pair with its caption."""
        band, column = divmod(number, COLUMNS)
        return MARGIN + LABEL + column * (self.cell + GAP), MARGIN + TITLE_SIZE + GAP + band * self.band


def _labels(canvas: ImageDraw.ImageDraw, sheet: _Sheet, top: int, labels: tuple[str, str]) -> None:
    for half, label in enumerate(labels):
        middle = top + sheet.caption + half * (sheet.cell_height + GAP // 2) + sheet.cell_height // 2
        lines = _wrap(drawable(label), LABEL - 8, _font(TEXT_SIZE), 4)
        for number, line in enumerate(lines):
            y = middle + (number - len(lines) / 2) * (TEXT_SIZE + 4)
            canvas.text((MARGIN, y), line, INK, font=_font(TEXT_SIZE))


def _caption(canvas: ImageDraw.ImageDraw, spot: tuple[int, int], width: int, text: str) -> None:
    font = _font(TEXT_SIZE)
    lines = _wrap(drawable(text), width, font, CAPTION_LINES)
    start = spot[1] + (CAPTION_LINES - len(lines)) * (TEXT_SIZE + 4)
    for number, line in enumerate(lines):
        canvas.text((spot[0], start + number * (TEXT_SIZE + 4)), line, INK, font=font)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont, most: int) -> list[str]:
    """At most `most` lines of at most `width` pixels; what is left over becomes an ellipsis."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < most:
        line = _fitting(rest, width, font)
        rest = rest[len(line) :].lstrip()
        lines.append(line.rstrip())
    if rest:
        last = lines[-1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines[-1] = last + "…"
    return lines


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The longest start of the text that fits, broken at a space or a hyphen where there is one."""
    if font.getlength(text[:400]) <= width and len(text) <= 400:
        return text
    end = 1
    while end < len(text) and font.getlength(text[: end + 1]) <= width:
        end += 1
    at = max(text.rfind(" ", 0, end + 1), text.rfind("-", 0, end))
    return text[: at + 1] if at > 0 else text[:end]


def _scaled(image: npt.NDArray[np.float32], width: int, height: int) -> Image.Image:
    from PIL import Image

    picture = Image.fromarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8))
    resampling = Image.Resampling.NEAREST if picture.width <= width else Image.Resampling.LANCZOS
    return picture.resize((width, height), resampling)


def _figures(row: PromptFidelity) -> str:
    if math.isinf(row.psnr_db):
        return "identical"
    return f"PSNR {row.psnr_db:.1f} dB, SSIM {row.ssim:.3f}"


def _font(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    found = ImageFont.load_default(size)
    if not isinstance(found, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType")
    return found
