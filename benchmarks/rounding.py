"""GPTQ beside plain k-means: fidelity on the built-in checkpoint, time on the SD 1.5 shape.

Fidelity: 4-bit palettes per tensor of every Linear and Conv2d of the denoiser, calibrated once; judged on prompts,
seeds and a step count that calibration did not see, by the output error of each layer (mean of the layers' dB) and
by the error of the predicted noise, with all layers rounded and with those that a recipe rounds by default.

Time: one layer of each shape that occurs, with a Gram matrix of random, correlated inputs, multiplied by how often
the shape occurs. `--quick` measures the shapes up to 2,880 inputs and extrapolates the others by their arithmetic
(N K² + K³ / 6 multiplications, at the rate of the widest measured), and says so; it also calibrates on less.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import Counter
from collections.abc import Iterator
from math import log10
from pathlib import Path
from typing import Any

import shapes
import torch
from torch import Tensor

from sdhub.compression.calibration import collect, spread, trajectories
from sdhub.compression.gptq import gptq
from sdhub.compression.gram import Gram, divided
from sdhub.compression.palettize import Palette, palettize
from sdhub.recipes.weights import LEAST

BITS = 4
QUICK_WIDTH = 2880
DIAGONAL = 1280
SEEN = (
    "red apple", "green apple", "pear", "lemon", "banana", "watermelon", "grapes", "strawberry", "cherries",
    "peach", "pineapple", "tomato", "carrot", "bread", "cheese wedge", "hamburger", "hot dog", "taco", "cookie",
    "doughnut", "birthday cake", "dog face", "cat face", "mouse face", "rabbit face", "fox", "bear", "panda",
    "koala", "tiger face", "lion", "cow face", "pig face", "frog", "monkey face", "chicken", "penguin", "owl",
    "whale", "crescent moon",
)  # fmt: skip
UNSEEN = (
    "pizza", "avocado", "mushroom", "ice cream", "wolf", "horse face", "turtle", "octopus", "butterfly",
    "red heart", "rocket", "guitar", "smiling face", "crown", "key", "umbrella",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("fidelity", "time"))
    given = parser.parse_args()
    rows = [] if given.only == "time" else fidelity(quick=given.quick)
    rows += [] if given.only == "fidelity" else durations(quick=given.quick)
    for row in rows:
        peer = "" if row["peer"] is None else f"{row['peer']:.5g}"
        print(f"{row['figure']:92} {row['ours']:9.5g} {peer:>9} {row['ratio'] or 0:8.4g}  {row['target']}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def fidelity(*, quick: bool) -> list[dict[str, Any]]:
    """dB of layer output error and of noise-prediction error, against plain k-means of the same format."""
    from diffusers import StableDiffusionPipeline

    from sdhub.demo import emoji_sd

    pipe = StableDiffusionPipeline.from_pretrained(emoji_sd(), torch_dtype=torch.float32)
    unet = pipe.unet
    grams = calibrated(pipe, quick=quick)
    large = {name for name in grams if unet.get_submodule(name).weight.numel() >= LEAST}
    calls, tokens = judged(pipe, UNSEEN[:6] if quick else UNSEEN)
    every, some = ([copy.deepcopy(unet) for _ in range(3)] for _ in range(2))
    gains: dict[str, list[tuple[float, float]]] = {"Linear": [], "Conv2d": []}
    for name, gram in grams.items():
        layer = unet.get_submodule(name)
        weight = layer.weight.detach()
        palette = palettize(weight.half(), BITS)
        quarter = divided(gram, max(weight[0].numel() // 4, 128))
        found = [palette, gptq(weight, palette, gram, passes=2), gptq(weight, palette, quarter)]
        errors = [output_error(weight, each, tokens[name]) for each in found]
        kind = "Linear" if weight.ndim == 2 else "Conv2d"
        gains[kind].append((decibels(errors[0], errors[1]), decibels(errors[0], errors[2])))
        for models in (every, some) if name in large else (every,):
            for model, each in zip(models, found, strict=True):
                model.get_submodule(name).weight.data.copy_(each.dequantize())
    wanted = predicted(unet, calls)
    prompts = f"{len(UNSEEN[:6] if quick else UNSEEN)} unseen prompts"
    rows = []
    for kind, target in (("Linear", 7.5), ("Conv2d", 5.0)):
        whole, part = (sum(each) / len(each) for each in zip(*gains[kind], strict=True))
        where = f"4-bit {kind}, {len(gains[kind])} layers, {prompts}: less output error than k-means"
        rows += [gain(where, whole, target), gain(f"{where}, Gram matrix in 4 diagonal blocks", part, None)]
    for label, models in (
        (f"all {len(grams)} layers at 4 bit", every),
        (f"the {len(large)} that recipes round at 4 bit", some),
    ):
        noise = [float((predicted(model, calls) - wanted).norm()) for model in models]
        where = f"{label}, {prompts}: less noise-prediction error"
        rows.append(gain(where, decibels(noise[0], noise[1]), 4.5))
        rows.append(gain(f"{where}, Gram matrices in 4 diagonal blocks", decibels(noise[0], noise[2]), None))
    return rows


def calibrated(pipe: Any, *, quick: bool) -> dict[str, Gram]:
    """The Gram matrix of every layer's inputs along the trajectories of the seen prompts."""
    count, rows = (10, 128) if quick else (len(SEEN), 320)
    drive = trajectories(pipe, SEEN[:count], range(100, 100 + count), steps=20, guidance=4.0, keep=spread(20, 10))
    found = collect(pipe.unet, drive, gram=True, gram_rows=rows, block=8192, tokens=0)
    return {name: layer.gram for name, layer in found.items() if layer.gram}


def judged(pipe: Any, prompts: tuple[str, ...]) -> tuple[list[tuple[Any, Any]], dict[str, Tensor]]:
    """Calls of the denoiser along other trajectories, and tokens of every layer there."""
    calls: list[tuple[Any, Any]] = []
    drive = trajectories(
        pipe, prompts, range(5000, 5000 + len(prompts)), steps=16, guidance=4.0, keep=spread(16, 6)
    )
    recording = [False]

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if recording[0]:
            calls.append((args, kwargs))

    handle = pipe.unet.register_forward_pre_hook(keep, with_kwargs=True)

    def both(switch: Any) -> None:
        drive(lambda on: (recording.__setitem__(0, on), switch(on))[0])

    found = collect(pipe.unet, both, tokens=1024)
    handle.remove()
    return calls, {name: layer.tokens for name, layer in found.items()}


def output_error(weight: Tensor, palette: Palette, tokens: Tensor) -> float:
    """Root of the squared output error over `tokens` (T, K)."""
    return float((tokens @ (palette.dequantize() - weight).flatten(1).T).norm())


def predicted(model: Any, calls: list[tuple[Any, Any]]) -> Tensor:
    """The noise that `model` predicts in all `calls`."""
    with torch.no_grad():
        return torch.stack([model(*args, **kwargs)[0] for args, kwargs in calls])


def durations(*, quick: bool) -> list[dict[str, Any]]:
    """Minutes to compensate all large layers of the SD 1.5 shape, whole and in diagonal blocks."""
    layers = Counter(
        (shape[0], torch.Size(shape[1:]).numel()) for shape in shapes.large(shapes.sd15_unet()).values()
    )
    rows = []
    for label, width, minutes in (("", None, 25), (f", diagonal blocks of {DIAGONAL}", DIAGONAL, 5)):
        total, extrapolated, rate = 0.0, 0, 0.0
        for (height, columns), count in sorted(layers.items(), key=lambda item: item[0][1]):
            if quick and columns > QUICK_WIDTH:
                taken, extrapolated = work(height, columns, width) / rate, extrapolated + count
            else:
                taken = duration(height, columns, width)
                rate = work(height, columns, width) / taken
            total += taken * count
            print(f"{height} x {columns}, {count} times{label}: {taken:.2f} s", flush=True)
        note = f", {extrapolated} by arithmetic" if extrapolated else ""
        name = f"SD 1.5 shape, {sum(layers.values())} layers{note}, one of each shape{label}: compensation"
        rows.append(figure(name, total / 60, None, None, f"<= {minutes}", total / 60 <= minutes, "min"))
    return rows


def duration(height: int, columns: int, width: int | None) -> float:
    """Seconds for one layer, without making its Gram matrix."""
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(height, columns, generator=generator)
    palette = palettize(weight.half(), BITS)
    gram = tuple(blocks(columns, width or columns, generator))
    start = time.perf_counter()
    gptq(weight, palette, gram)
    return time.perf_counter() - start


def blocks(columns: int, width: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Gram matrices of inputs with 64 common factors and noise."""
    for first in range(0, columns, width):
        size = min(width, columns - first)
        common = torch.randn(size, 64, generator=generator)
        matrix = common @ common.T
        matrix.diagonal().add_(8 * torch.rand(size, generator=generator) + 1)
        yield matrix


def work(height: int, columns: int, width: int | None) -> float:
    """Multiplications, as `gptq` states them."""
    size = min(width or columns, columns)
    return columns / size * (height * size**2 + size**3 / 6)


def decibels(before: float, after: float) -> float:
    return 20 * log10(before / after)


def gain(name: str, value: float, target: float | None) -> dict[str, Any]:
    wanted = "" if target is None else f">= {target}"
    return figure(name, value, None, None, wanted, None if target is None else value >= target, "dB")


def figure(
    name: str, ours: float, peer: float | None, ratio: float | None, target: str, met: bool | None, unit: str
) -> dict[str, Any]:
    return {"figure": name, "ours": ours, "peer": peer, "ratio": ratio, "target": target, "met": met, "unit": unit}


if __name__ == "__main__":
    main()
