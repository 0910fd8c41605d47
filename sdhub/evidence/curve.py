"""The curve of an analysis: PSNR over bits, as SVG or PNG; the same figures give the same bytes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from sdhub.core.errors import UsageError
from sdhub.evidence.figures import drawable

WIDTH, HEIGHT = 960, 600
LEFT, RIGHT, TOP, BOTTOM = 84, 28, 112, 76
INK, FAINT, PAPER, GRID = "#1c1e21", "#69707a", "#ffffff", "#e4e7eb"
COLORS = ("#1668b8", "#c2571a", "#2f7d4f", "#7a4fa3")
TITLE_SIZE, TEXT_SIZE = 20, 14
TICKS = 8


@dataclass(frozen=True)
class Series:
    """Points (bits, dB); with `line` they are joined, else each is a dot with its label."""

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = True
    labels: Sequence[str] = ()


def draw_curve(
    path: Path,
    series: Sequence[Series],
    *,
    title: str,
    bottom: str,
    top: str,
    side: str,
    other: Callable[[float], float],
) -> None:
    """Write the picture; the end of its name, .svg or .png, says which.

    `bottom`, `top` and `side` name the axes; `other` turns a number of the bottom axis into one of the top axis,
    and is increasing and straight. Raises UsageError for another ending.
    """
    kinds: dict[str, type[_Canvas]] = {".svg": _Svg, ".png": _Png}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{path}: a curve is drawn as .svg or .png")
    canvas = kind()
    shown = [each for each in series if each.points]
    _Plot(canvas, shown, other).draw(title, bottom, top, side)
    path.write_bytes(canvas.bytes())


class _Canvas(ABC):
    """Coordinates in pixels from the upper left."""

    @abstractmethod
    def line(self, points: Sequence[tuple[float, float]], color: str, width: int) -> None: ...

    @abstractmethod
    def dot(self, x: float, y: float, color: str) -> None: ...

    @abstractmethod
    def text(self, x: float, y: float, text: str, color: str, size: int, anchor: str, upright: bool) -> None:
        """`anchor`: start, middle or end of the text is at x, its middle at y; `upright`: read from below."""

    @abstractmethod
    def bytes(self) -> bytes: ...


class _Svg(_Canvas):
    def __init__(self) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'height="{HEIGHT}" font-family="sans-serif">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
        ]

    def line(self, points: Sequence[tuple[float, float]], color: str, width: int) -> None:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="{width}"/>')

    def dot(self, x: float, y: float, color: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{color}"/>')

    def text(self, x: float, y: float, text: str, color: str, size: int, anchor: str, upright: bool) -> None:
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if upright else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" font-size="{size}" text-anchor="{anchor}" '
            f'dominant-baseline="central"{turn}>{escape(drawable(text))}</text>'
        )

    def bytes(self) -> bytes:
        return ("\n".join([*self.parts, "</svg>"]) + "\n").encode()


class _Png(_Canvas):
    def __init__(self) -> None:
        from PIL import Image, ImageDraw

        self.picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
        self.canvas = ImageDraw.Draw(self.picture)

    def line(self, points: Sequence[tuple[float, float]], color: str, width: int) -> None:
        self.canvas.line(list(points), color, width, joint="curve")

    def dot(self, x: float, y: float, color: str) -> None:
        self.canvas.ellipse((x - 5, y - 5, x + 5, y + 5), color)

    def text(self, x: float, y: float, text: str, color: str, size: int, anchor: str, upright: bool) -> None:
        from PIL import Image, ImageDraw, ImageFont

        font: Any = ImageFont.load_default(size)
        text = drawable(text)
        if not upright:
            place = {"start": "lm", "middle": "mm", "end": "rm"}[anchor]
            self.canvas.text((x, y), text, color, font=font, anchor=place)
            return
        length = math.ceil(font.getlength(text)) + 4
        strip = Image.new("RGB", (length, size + 8), PAPER)
        ImageDraw.Draw(strip).text((length / 2, size / 2 + 4), text, color, font=font, anchor="mm")
        turned = strip.rotate(90, expand=True)
        self.picture.paste(turned, (round(x - turned.width / 2), round(y - turned.height / 2)))

    def bytes(self) -> bytes:
        from io import BytesIO

        stream = BytesIO()
        self.picture.save(stream, format="PNG", optimize=True)
        return stream.getvalue()


class _Plot:
    def __init__(self, canvas: _Canvas, series: Sequence[Series], other: Callable[[float], float]) -> None:
        points = [point for each in series for point in each.points]
        if not points:
            raise UsageError("a curve without points")
        self.canvas, self.series, self.other = canvas, series, other
        self.low, self.high = _range([x for x, _ in points])
        self.floor, self.roof = _range([y for _, y in points])

    def draw(self, title: str, bottom: str, top: str, side: str) -> None:
        middle, centre = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
        self._text(LEFT, 24, title, INK, TITLE_SIZE, "start")
        self._axes()
        self._text(middle, HEIGHT - 22, bottom, INK, TEXT_SIZE, "middle")
        self._text(middle, TOP - 40, top, FAINT, TEXT_SIZE, "middle")
        self.canvas.text(22, centre, side, INK, TEXT_SIZE, "middle", True)
        for number, each in enumerate(self.series):
            color = COLORS[number % len(COLORS)]
            self._series(each, color)
            y = HEIGHT - BOTTOM - 18 - 22 * (len(self.series) - 1 - number)
            self.canvas.dot(WIDTH - RIGHT - 300, y, color)
            self._text(WIDTH - RIGHT - 286, y, each.name, INK, TEXT_SIZE, "start")

    def _series(self, series: Series, color: str) -> None:
        places = [(self._x(x), self._y(y)) for x, y in series.points]
        if series.line:
            self.canvas.line(places, color, 2)
            return
        for number, (x, y) in enumerate(places):
            self.canvas.dot(x, y, color)
            if number < len(series.labels):
                self._text(x + 9, y + 9, series.labels[number], color, TEXT_SIZE - 2, "start")

    def _axes(self) -> None:
        for value in _ticks(self.low, self.high):
            x = self._x(value)
            self.canvas.line([(x, TOP), (x, HEIGHT - BOTTOM)], GRID, 1)
            self._text(x, HEIGHT - BOTTOM + 16, f"{value:g}", INK, TEXT_SIZE, "middle")
        start, stop = self.other(self.low), self.other(self.high)
        for value in _ticks(start, stop):
            x = self._x(self.low + (value - start) / (stop - start) * (self.high - self.low))
            self.canvas.line([(x, TOP - 5), (x, TOP)], FAINT, 1)
            self._text(x, TOP - 16, f"{value:g}", FAINT, TEXT_SIZE, "middle")
        for value in _ticks(self.floor, self.roof):
            y = self._y(value)
            self.canvas.line([(LEFT, y), (WIDTH - RIGHT, y)], GRID, 1)
            self._text(LEFT - 10, y, f"{value:g}", INK, TEXT_SIZE, "end")
        box = [(LEFT, TOP), (WIDTH - RIGHT, TOP), (WIDTH - RIGHT, HEIGHT - BOTTOM), (LEFT, HEIGHT - BOTTOM)]
        self.canvas.line([*box, box[0]], FAINT, 1)

    def _text(self, x: float, y: float, text: str, color: str, size: int, anchor: str) -> None:
        self.canvas.text(x, y, text, color, size, anchor, False)

    def _x(self, value: float) -> float:
        return LEFT + (value - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)

    def _y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.floor) / (self.roof - self.floor) * (HEIGHT - TOP - BOTTOM)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, at most about `TICKS`."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough)
    first = math.ceil(low / step)
    return [round(number * step, 6) for number in range(first, math.floor(high / step) + 1)]
