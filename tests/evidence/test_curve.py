"""The curve as a picture: axes that are named, both forms, the same bytes each time."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from sdhub.core.errors import UsageError
from sdhub.evidence.curve import Series, draw_curve

SERIES = [
    Series("mixed <1>", [(1.5, 20.0), (3.0, 30.0), (6.0, 48.0)]),
    Series("one width", [(2.0, 18.0), (4.0, 33.0)], line=False, labels=["2 bit", "4 bit"]),
    Series("nothing", []),
]


def drawn(path: Path) -> Path:
    draw_curve(
        path, SERIES, title="emoji & co", bottom="bits per weight", top="per parameter", side="PSNR, dB",
        other=lambda bits: 0.9 * bits + 1.6,
    )  # fmt: skip
    return path


def test_svg_is_well_formed_and_rises_to_the_right(tmp_path: Path) -> None:
    root = ET.parse(drawn(tmp_path / "curve.svg")).getroot()
    texts = {each.text for each in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"bits per weight", "per parameter", "PSNR, dB", "emoji & co", "mixed <1>", "4 bit"} <= texts
    assert "nothing" not in texts
    (line,) = [
        each for each in root.iter("{http://www.w3.org/2000/svg}polyline") if each.get("stroke-width") == "2"
    ]
    places = [tuple(map(float, pair.split(","))) for pair in str(line.get("points")).split()]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(places)]
    assert all(slope < 0 for slope in slopes)
    assert slopes[0] / slopes[1] == pytest.approx((10 / 1.5) / (18 / 3), rel=0.01)


def test_png_opens_and_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = drawn(tmp_path / "a.png").read_bytes(), drawn(tmp_path / "b.png").read_bytes()
    assert first == second
    assert Image.open(tmp_path / "a.png").size == (960, 600)


def test_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.svg or \.png"):
        drawn(tmp_path / "curve.pdf")
