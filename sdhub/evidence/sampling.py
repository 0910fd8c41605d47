"""What is drawn for evidence: prompts, seeds, steps; and one way to draw it with any diffusers-style pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prompt:
    """A prompt with the seed of its initial latents."""

    text: str
    seed: int


@dataclass(frozen=True)
class Sampling:
    """How base and variant are sampled alike. `width` and `height` in pixels."""

    prompts: tuple[Prompt, ...]
    steps: int
    guidance: float
    width: int
    height: int

    def document(self) -> Mapping[str, Any]:
        """The JSON form, part of the key of every measured stage."""
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """One picture: `image` float32 (H, W, 3) in [0, 1], `latents` float32 (C, h, w) before decoding."""

    image: npt.NDArray[np.float32]
    latents: npt.NDArray[np.float32]
