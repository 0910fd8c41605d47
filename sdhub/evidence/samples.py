"""Samples on disk: lossless floats for figures, PNGs for people; the same samples give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sdhub.evidence.sampling import Sample

FILE = "samples.safetensors"


def save(folder: Path, samples: Sequence[Sample]) -> None:
    """Write `samples.safetensors` and `NN.png` for each."""
    from safetensors.numpy import save_file

    tensors = {}
    for number, sample in enumerate(samples):
        tensors[f"{number:02d}.image"] = np.ascontiguousarray(sample.image)
        tensors[f"{number:02d}.latents"] = np.ascontiguousarray(sample.latents)
        save_png(folder / f"{number:02d}.png", sample.image)
    save_file(tensors, folder / FILE)


def load(folder: Path) -> list[Sample]:
    """What `save` wrote, in order."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / FILE)
    count = len(tensors) // 2
    return [Sample(tensors[f"{number:02d}.image"], tensors[f"{number:02d}.latents"]) for number in range(count)]


def save_png(path: Path, image: npt.NDArray[np.float32]) -> None:
    """Write a picture (H, W, 3) in [0, 1] with 8 bits a channel."""
    from PIL import Image

    Image.fromarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)).save(path, format="PNG", optimize=True)
