from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdhub.evidence.compare import PromptFidelity
from sdhub.evidence.figures import contact_sheet, drawable
from sdhub.evidence.sampling import Sample
from tests.evidence.fakes import noisy

HOSTILE = [
    "",
    " \t\n",
    "x" * 5000,
    "word " * 1000,
    "line\nbreak\r\n\ttab\x00null\x1b[31mred",
    "\u202eright to left\u202c \u200bzero width",
    "\ud800 half a pair",
    "日本語の長い説明文" * 20,
    "مرحبا بالعالم",
    "🍕👩‍👩‍👧‍👦🏳️‍🌈",
    "Z̸̡͓͈̬̈́a̶̰͝l̸̰̈́g̵̈ͅo̷",
    "<script>alert(1)</script> | `code` | [a](b)",
    "\uffff\U0010ffff\ue000",
]


def sheet(path: Path, samples: list[Sample], texts: list[str], *, title: str = "emoji-sd") -> Image.Image:
    rows = [PromptFidelity(text, 1, 30.0, 0.9, 40.0) for text in texts]
    contact_sheet(path, samples, samples[::-1], rows, title=title, labels=("base", "variant"))
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert not picture.info
        return picture.convert("RGB")


def flat(size: int, colour: tuple[float, float, float]) -> Sample:
    return Sample(np.full((size, size, 3), colour, np.float32), np.ones((4, 2, 2), np.float32))


def extent(picture: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int]:
    """Width and height of what has this colour."""
    found = np.argwhere((np.asarray(picture) == colour).all(axis=-1))
    height, width = found.max(axis=0) - found.min(axis=0) + 1
    return int(width), int(height)


@pytest.mark.parametrize(("size", "cell"), [(64, 192), (100, 200), (256, 256), (512, 320), (1024, 320)])
def test_small_pictures_grow_and_big_ones_shrink(tmp_path: Path, size: int, cell: int) -> None:
    red = flat(size, (1.0, 0.0, 0.0))
    contact_sheet(
        tmp_path / "s.png", [red], [flat(size, (0.0, 0.0, 1.0))], rows_of(1), title="t", labels=("b", "v")
    )
    with Image.open(tmp_path / "s.png") as picture:
        width, height = extent(picture.convert("RGB"), (255, 0, 0))
    assert cell - 2 <= width <= cell
    assert cell - 2 <= height <= cell


def rows_of(count: int) -> list[PromptFidelity]:
    return [PromptFidelity(f"prompt {number}", number, 30.0, 0.9, 40.0) for number in range(count)]


def test_the_base_is_above_the_variant(tmp_path: Path) -> None:
    red, blue = flat(64, (1.0, 0.0, 0.0)), flat(64, (0.0, 0.0, 1.0))
    contact_sheet(tmp_path / "s.png", [red], [blue], rows_of(1), title="t", labels=("base", "variant"))
    with Image.open(tmp_path / "s.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    top = np.argwhere((pixels == (255, 0, 0)).all(axis=-1))
    bottom = np.argwhere((pixels == (0, 0, 255)).all(axis=-1))
    assert top[:, 0].max() < bottom[:, 0].min()
    assert top[:, 1].min() == bottom[:, 1].min()


def test_enlarging_blurs_nothing(tmp_path: Path) -> None:
    checks = np.indices((64, 64)).sum(axis=0) % 2
    board = Sample(np.repeat(checks[..., None], 3, axis=2).astype(np.float32), np.ones((4, 2, 2), np.float32))
    contact_sheet(tmp_path / "s.png", [board], [board], rows_of(1), title="", labels=("", ""))
    with Image.open(tmp_path / "s.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    left, top = np.argwhere(pixels < 10).min(axis=0)[::-1]
    inside = pixels[top + 6 : top + 150, left + 6 : left + 150]
    assert set(np.unique(inside)) == {0, 255}


def test_more_prompts_make_more_bands(tmp_path: Path) -> None:
    sizes = {
        count: sheet(tmp_path / "s.png", [noisy(n, 32) for n in range(count)], ["x"] * count).size
        for count in (1, 4, 5, 8, 9)
    }
    assert sizes[1][0] < sizes[4][0] == sizes[5][0] == sizes[8][0] == sizes[9][0]
    assert sizes[1][1] == sizes[4][1] < sizes[5][1] == sizes[8][1] < sizes[9][1]
    assert sizes[9][1] - sizes[8][1] == sizes[5][1] - sizes[4][1]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        sheet(tmp_path / name, [noisy(1), noisy(2)], ["a cat", "a dog"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("text", HOSTILE)
def test_no_prompt_breaks_the_sheet_or_leaves_its_column(tmp_path: Path, text: str) -> None:
    samples = [flat(64, (1.0, 0.0, 0.0))] * 2
    hostile = sheet(tmp_path / "a.png", samples, [text, ""], title=text)
    plain = sheet(tmp_path / "b.png", samples, ["", ""], title="")
    assert hostile.size == plain.size
    pixels, empty = np.asarray(hostile), np.asarray(plain)
    columns = np.flatnonzero((empty == (255, 0, 0)).all(axis=-1).any(axis=0))
    second = columns[np.flatnonzero(np.diff(columns) > 1)[0] + 1]
    below_title = 24 + 22 + 12
    assert np.array_equal(pixels[below_title:, second - 2 :], empty[below_title:, second - 2 :])


def test_pictures_that_are_not_square_keep_their_shape(tmp_path: Path) -> None:
    wide = Sample(np.full((32, 64, 3), (1.0, 0.0, 0.0), np.float32), np.ones((4, 2, 2), np.float32))
    blue = Sample(np.full((32, 64, 3), (0.0, 0.0, 1.0), np.float32), np.ones((4, 2, 2), np.float32))
    contact_sheet(tmp_path / "s.png", [wide], [blue], rows_of(1), title="t", labels=("b", "v"))
    with Image.open(tmp_path / "s.png") as picture:
        width, height = extent(picture.convert("RGB"), (255, 0, 0))
    assert abs(width - 2 * height) <= 4


@pytest.mark.parametrize("text", HOSTILE)
def test_drawable_text_is_one_line_that_encodes(text: str) -> None:
    line = drawable(text)
    line.encode("utf-8")
    assert line.isprintable()
    assert line == line.strip()
