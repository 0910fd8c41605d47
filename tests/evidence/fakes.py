"""A pipeline of diffusers' calling convention that costs nothing and says how it was called."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sdhub.evidence.sampling import Prompt, Sample, Sampling


class FakePipeline:
    """Each step halves the latents; the picture is a ramp unless `image` says otherwise."""

    vae_scale_factor = 8

    def __init__(
        self, *, dtype: torch.dtype = torch.float32, before_step: Callable[[], None] = lambda: None
    ) -> None:
        self.unet = SimpleNamespace(dtype=dtype)
        self.vae = SimpleNamespace(config=SimpleNamespace(latent_channels=4))
        self.before_step = before_step
        self.image: Any = None
        self.nsfw: list[bool] | None = None
        self.calls: list[dict[str, Any]] = []

    def set_progress_bar_config(self, **config: Any) -> None:
        self.bar = config

    def __call__(self, prompt: str, **call: Any) -> SimpleNamespace:
        self.calls.append({"prompt": prompt, **call})
        latents = call["latents"]
        if latents is None:
            latents = torch.randn((1, 4, 2, 2), generator=call["generator"])
        for step in range(call["num_inference_steps"]):
            self.before_step()
            latents = latents / 2
            call["callback_on_step_end"](self, step, 0, {"latents": latents})
        image = ramp(call["height"], call["width"]) if self.image is None else self.image
        return SimpleNamespace(images=[image], nsfw_content_detected=self.nsfw)


def ramp(height: int = 16, width: int = 16) -> np.ndarray:
    """A smooth picture (H, W, 3) in [0.2, 0.8]."""
    y, x = np.mgrid[0:height, 0:width]
    across = np.stack([x / width, y / height, (x + y) / (width + height)], axis=-1)
    return (0.2 + 0.6 * across).astype(np.float32)


def noisy(seed: int, size: int = 64, *, strength: float = 0.05) -> Sample:
    """The ramp with noise, and noise as latents."""
    numbers = np.random.default_rng(seed)
    image = np.clip(ramp(size, size) + strength * numbers.standard_normal((size, size, 3)), 0, 1)
    latents = numbers.standard_normal((4, size // 8, size // 8))
    return Sample(image.astype(np.float32), latents.astype(np.float32))


def sampling(*texts: str, steps: int = 3, size: int = 16) -> Sampling:
    """A sampling of these prompts with seeds 1, 2, …"""
    prompts = tuple(Prompt(text, seed) for seed, text in enumerate(texts or ("a ramp",), start=1))
    return Sampling(prompts, steps=steps, guidance=4.0, width=size, height=size)
