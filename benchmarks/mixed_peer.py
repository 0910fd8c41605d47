"""The peer of `mixed_bits.py`: mixed-bit palettization as Apple published it, from its description.

For each width, every candidate layer is palettized alone and one denoising step from pure noise is compared with
the uncompressed one; then the layers are palettized one after another, the least harmful first, and every state is
compared. A recipe gives each layer the least width whose state lies above a threshold, and 16 bits where none
does.

Four things are in its favour: a layer is clustered once per width, not for every run; texts are encoded once; all
prompts are one batch; and
thresholds are spread over the range of its own figures, since the published range rests on the noise of a GPU and
is empty on a machine that computes the same twice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

import torch
from torch import Tensor, nn

from sdhub.compression.palettize import palettize

BITS = (1, 2, 4, 6, 8)
FLOAT = 16
THRESHOLDS = 400


@dataclass(frozen=True)
class Peer:
    """What the analysis found; `states[bits][layer]` is the PSNR after this layer was added to those before it."""

    alone: dict[int, dict[str, float]]
    states: dict[int, dict[str, float]]
    calls: int
    seconds: float

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return {"alone": self.alone, "states": self.states, "calls": self.calls, "seconds": self.seconds}

    def recipe(self, threshold: float) -> dict[str, int]:
        """Bits of each candidate."""
        layers = next(iter(self.states.values()))
        return {
            name: next((bits for bits in sorted(self.states) if self.states[bits][name] > threshold), FLOAT)
            for name in layers
        }

    def recipes(self, weights: dict[str, int], low: float, high: float, count: int) -> list[dict[str, int]]:
        """At most `count` recipes of `low` to `high` bits per weight (`weights` of each layer), evenly spread."""
        figures = [value for state in self.states.values() for value in state.values()]
        lowest, highest = min(figures), max(figures)
        found: dict[float, dict[str, int]] = {}
        for step in range(THRESHOLDS):
            recipe = self.recipe(lowest + (highest - lowest) * step / THRESHOLDS)
            bits = sum(weights[name] * each for name, each in recipe.items()) / sum(weights.values())
            if low <= bits <= high:
                found[round(bits, 3)] = recipe
        sizes = sorted(found)
        wanted = [low + (high - low) * step / max(count - 1, 1) for step in range(count)]
        nearest = {min(sizes, key=lambda size: abs(size - goal)) for goal in wanted} if sizes else set()
        return [found[size] for size in sorted(nearest)]


def parse(document: dict[str, Any]) -> Peer:
    """What `Peer.document` gave, out of JSON."""
    alone, states = ({int(bits): found for bits, found in document[name].items()} for name in ("alone", "states"))
    return Peer(alone, states, document["calls"], document["seconds"])


def analyze(
    pipe: Any, prompts: list[str], layers: list[str], guidance: float, widths: Sequence[int] = BITS
) -> Peer:
    """The published analysis of a Stable Diffusion pipeline on the CPU."""
    started = time.perf_counter()
    step = _Step(pipe, prompts, guidance)
    reference = step.latents()
    modules: dict[str, nn.Linear | nn.Conv2d] = {name: pipe.unet.get_submodule(name) for name in layers}
    dense = {name: module.weight.detach().clone() for name, module in modules.items()}
    alone: dict[int, dict[str, float]] = {}
    states: dict[int, dict[str, float]] = {}
    for bits in widths:
        tables = {name: palettize(weight.half(), bits).dequantize() for name, weight in dense.items()}
        alone[bits], states[bits] = {}, {}
        for name, module in modules.items():
            module.weight.data.copy_(tables[name])
            alone[bits][name] = _psnr(reference, step.latents())
            module.weight.data.copy_(dense[name])
        for name in sorted(layers, key=lambda name: -alone[bits][name]):
            modules[name].weight.data.copy_(tables[name])
            states[bits][name] = _psnr(reference, step.latents())
        for name, module in modules.items():
            module.weight.data.copy_(dense[name])
        print(f"peer: {bits} bit after {time.perf_counter() - started:.0f} s, {step.calls} calls", flush=True)
    return Peer(alone, states, step.calls, time.perf_counter() - started)


class _Step:
    """One denoising step from pure noise, all prompts at once; `calls` of the denoiser: one a prompt."""

    def __init__(self, pipe: Any, prompts: list[str], guidance: float) -> None:
        self.pipe, self.guidance, self.calls = pipe, guidance, 0
        guided, blind = zip(*(pipe.encode_prompt(text, "cpu", 1, True) for text in prompts), strict=True)
        self.embeddings = torch.cat([*blind, *guided])
        pipe.scheduler.set_timesteps(1)
        side = pipe.unet.config.sample_size
        shape = (len(prompts), pipe.unet.config.in_channels, side, side)
        self.noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def latents(self) -> Tensor:
        """The latents (prompts, C, h, w) after the step."""
        (moment,) = self.pipe.scheduler.timesteps
        both = self.pipe.unet(torch.cat([self.noise] * 2), moment, encoder_hidden_states=self.embeddings)[0]
        blind, guided = both.chunk(2)
        self.calls += len(self.noise)
        latents: Tensor = self.pipe.scheduler.step(blind + self.guidance * (guided - blind), moment, self.noise)[0]
        return latents


def _psnr(reference: Tensor, test: Tensor) -> float:
    """The mean over prompts of the published PSNR, whose peak is the test's."""
    found = []
    for a, b in zip(reference, test, strict=True):
        peak, error = float(b.abs().max()), float((a - b).square().mean().sqrt())
        found.append(20 * log10((peak + 1e-5) / (error + 1e-10)))
    return sum(found) / len(found)
