"""Fidelity of pictures and latents: PSNR, and SSIM (Wang, Bovik, Sheikh and Simoncelli, 2004)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]

RADIUS, SIGMA = 5, 1.5
K1, K2 = 0.01, 0.03


def psnr(reference: Array, other: Array, peak: float) -> float:
    """Peak signal-to-noise ratio in dB over all elements: 10 log10(peak² / mean squared error).

    Arrays of one shape; infinite where they are equal.
    """
    error = float(np.mean((reference.astype(np.float64) - other.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def latent_psnr(reference: Array, other: Array) -> float:
    """PSNR of latents in dB, with max |reference| as the peak."""
    return psnr(reference, other, float(np.max(np.abs(reference))))


def ssim(reference: Array, other: Array) -> float:
    """Structural similarity of two pictures (H, W, C) in [0, 1], at least 11 x 11: mean over pixels, channels.

    Gaussian window of 11 x 11 with sigma 1.5, K1 0.01, K2 0.03, population statistics, borders left out.
    """
    a, b = reference.astype(np.float64), other.astype(np.float64)
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float(np.mean(luminance * structure))


def _blur(picture: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gaussian-weighted means over each full 11 x 11 window."""
    offsets = np.arange(-RADIUS, RADIUS + 1)
    window = np.exp(-(offsets**2) / (2 * SIGMA**2))
    window /= window.sum()
    for axis in (0, 1):
        length = picture.shape[axis] - 2 * RADIUS
        shifted = [np.take(picture, range(start, start + length), axis=axis) for start in range(window.size)]
        picture = np.tensordot(window, np.stack(shifted), axes=1)
    return picture
