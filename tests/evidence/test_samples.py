from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sdhub.evidence.samples import load, save, save_png
from tests.evidence.fakes import noisy


def test_floats_come_back_as_they_were(tmp_path: Path) -> None:
    drawn = [noisy(number) for number in range(12)]
    save(tmp_path, drawn)
    found = load(tmp_path)
    assert len(found) == 12
    for before, after in zip(drawn, found, strict=True):
        assert np.array_equal(before.image, after.image)
        assert np.array_equal(before.latents, after.latents)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        save(folder, [noisy(1), noisy(2)])
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == ["00.png", "01.png", "samples.safetensors"]
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_pictures_are_within_half_a_level(tmp_path: Path) -> None:
    image = noisy(1).image
    save_png(tmp_path / "x.png", image)
    with Image.open(tmp_path / "x.png") as picture:
        assert not picture.info
        levels = np.asarray(picture, np.float64)
    assert np.abs(levels - image * 255.0).max() <= 0.5 + 1e-4


def test_values_out_of_range_are_clipped(tmp_path: Path) -> None:
    save_png(tmp_path / "x.png", np.array([[[-1.0, 0.5, 2.0]]], np.float32))
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.getpixel((0, 0)) == (0, 128, 255)
