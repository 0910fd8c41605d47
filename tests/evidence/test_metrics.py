from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sdhub.evidence.metrics import latent_psnr, psnr, ssim
from tests.evidence.fakes import noisy, ramp


@pytest.mark.parametrize(("offset", "decibels"), [(0.1, 20.0), (0.01, 40.0), (-0.1, 20.0), (0.5, 6.0206)])
def test_psnr_of_a_constant_offset(offset: float, decibels: float) -> None:
    grey = np.full((12, 20, 3), 0.5, np.float32)
    assert psnr(grey, grey + np.float32(offset), peak=1.0) == pytest.approx(decibels, abs=1e-3)


def test_psnr_grows_with_the_peak() -> None:
    a, b = ramp(), ramp() + np.float32(0.1)
    assert psnr(a, b, peak=10.0) - psnr(a, b, peak=1.0) == pytest.approx(20.0)


def test_psnr_is_that_of_scikit_image() -> None:
    a, b = noisy(1).image, noisy(2).image
    assert psnr(a, b, peak=1.0) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0), abs=1e-6)


def test_psnr_of_equals_is_infinite() -> None:
    assert psnr(ramp(), ramp(), peak=1.0) == math.inf


def test_latent_psnr_has_the_largest_latent_as_peak() -> None:
    latents = np.array([[[0.0, -4.0], [1.0, 2.0]]], np.float32)
    assert latent_psnr(latents, latents + np.float32(0.4)) == pytest.approx(20.0, abs=1e-4)


@pytest.mark.parametrize("size", [11, 64, 77])
@pytest.mark.parametrize("strength", [0.01, 0.1, 0.4])
def test_ssim_is_that_of_scikit_image(size: int, strength: float) -> None:
    a, b = ramp(size, size), noisy(3, size, strength=strength).image
    expected = structural_similarity(
        a.astype(np.float64),
        b.astype(np.float64),
        data_range=1.0,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_a_picture_that_is_not_square() -> None:
    a, b = ramp(20, 33), np.flip(ramp(20, 33), axis=1)
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(a, b) == pytest.approx(ssim(b, a))
    assert ssim(a, b) < 0.9
