"""Mixed bits beside the published pre-analysis, on the built-in checkpoint, both in one run.

Both choose among the same layers of the same denoiser, on the same prompts. At each size where the peer has a
recipe between 2.5 and 7 bits, three denoisers are sampled along full trajectories, on prompts and seeds that
neither method saw: the peer's recipe in plain k-means; ours of that size in plain k-means and the peer's widths,
which shows what the allocation brings; and ours with all widths and GPTQ, as sdhub makes
variants. PSNR is of the final latents and of the pictures: the mean of all pictures' PSNR, and pooled, the PSNR of
their mean error, which a single picture that turns into another one decides.

Calls are of the denoiser, one per prompt and step with guidance's two halves in it; a backward pass counts as one
more. Seconds are of the analyses alone: neither the peer's nor ours holds the loading of the checkpoint, the
evaluation, or the making of the variant. The published analysis leaves out layers of up to 100,000 weights to save
time; there its calls would be fewer, which is told beside the ratio. `--quick` takes fewer prompts, widths and
sizes; `--peer FILE` keeps the peer's analysis there, and takes it from there; `--cost` measures calls and seconds
of both analyses alone, and keeps all other figures of an earlier run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mixed_peer
import numpy as np
import torch
from torch import Tensor

from sdhub.analysis.allocation import Choice
from sdhub.analysis.analysis import Analysis
from sdhub.analysis.analyzer import SensitivityAnalyzer, trajectories_for
from sdhub.backends.coreml.presets import choices
from sdhub.checkpoint.resolve import resolve
from sdhub.compression.affine import quantize
from sdhub.compression.palettize import palettize
from sdhub.core.work import Work
from sdhub.evidence.metrics import psnr
from sdhub.recipes.calibration import calibrate, calibration_for
from sdhub.recipes.recipe import Float, Palette, Recipe, Rounding, Treatment
from sdhub.recipes.treatments import dequantized

LOW, HIGH, SIZES = 2.5, 7.0, 7
PUBLISHED_LEAST = 100_000  # weights of a layer that the published analysis looks at
PROMPTS = ("red apple", "fox", "crescent moon", "sailboat", "birthday cake", "panda", "violin", "bread")
UNSEEN = (
    "pizza", "avocado", "wolf", "horse face", "octopus", "butterfly", "rocket", "guitar", "crown", "key",
)  # fmt: skip
SEED, STEPS = 9000, 20
PSNR = ("latent PSNR", "image PSNR", "latent PSNR, pooled", "image PSNR, pooled")
GPTQ: Rounding = "gptq"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peer", type=Path, metavar="FILE")
    parser.add_argument("--cost", action="store_true")
    given = parser.parse_args()
    found = compared(given.peer, quick=given.quick, fidelity=not given.cost)
    rows = [*found, *([] if given.cost else outliers())]
    for row in rows:
        peer = "" if row["peer"] is None else f"{row['peer']:.5g}"
        print(f"{row['figure']:96} {row['ours']:9.5g} {peer:>9} {row['ratio'] or 0:8.4g}  {row['target']}")
    if given.json:
        earlier = json.loads(given.json.read_text()) if given.cost and given.json.exists() else []
        merged = {row["figure"]: row for row in [*earlier, *rows]}
        given.json.write_text(json.dumps(list(merged.values()), indent=1) + "\n", encoding="utf-8")


def compared(kept: Path | None, *, quick: bool, fidelity: bool) -> list[dict[str, Any]]:
    """Sizes, fidelity and cost of both."""
    from diffusers import StableDiffusionPipeline

    from sdhub.demo import emoji_sd

    pipe = StableDiffusionPipeline.from_pretrained(emoji_sd(), torch_dtype=torch.float32, safety_checker=None)
    checkpoint = resolve("demo")
    setting = trajectories_for(checkpoint)
    prompts = PROMPTS[: 3 if quick else len(PROMPTS)]
    setting = setting.model_copy(update={"prompts": prompts[: len(setting.prompts)]})
    ours = timed(pipe, setting)
    again = timed(pipe, setting)
    layers = list(ours.analysis.weights)
    widths = (2, 4, 8) if quick else mixed_peer.BITS
    peer = peer_of(kept, pipe, prompts, layers, setting.guidance, widths)
    rows = []
    if fidelity:
        bench = Bench(pipe, UNSEEN[: 3 if quick else len(UNSEEN)], 8 if quick else STEPS, setting.guidance)
        bench.statistics = calibrate(pipe, calibration_for(checkpoint), layers=layers)
        rows = sizes(bench, ours, peer, 3 if quick else SIZES) + fixed(bench, ours.analysis)
    published = sum(weights > PUBLISHED_LEAST for weights in ours.analysis.weights.values())
    calls = (
        f"denoiser calls (the peer with its layers of over 100,000 weights alone: {published} of {len(layers)}, "
    )
    calls += f"{peer.calls * published // len(layers)})"
    rows.append(cost(calls, ours.analysis.calls, peer.calls, 50, "calls"))
    rows.append(cost("seconds of the analysis", ours.seconds, peer.seconds, 20, "s"))
    same = ours.recipe.model_dump_json() == again.recipe.model_dump_json()
    rows.append(figure("two runs give the same recipe, byte for byte", float(same), None, None, "1", same, ""))
    return rows


@dataclass(frozen=True)
class Ours:
    """Our analysis: what it found, how long it took."""

    analysis: Analysis
    plain: Analysis
    recipe: Recipe
    seconds: float


def timed(pipe: Any, setting: Any) -> Ours:
    """The analysis anew, with a check of the 4.5-bit recipe."""
    from sdhub.backends.coreml.backend import BACKEND

    with tempfile.TemporaryDirectory() as folder:
        analyzer = SensitivityAnalyzer(lambda: pipe, "demo", "0" * 64, setting, Work(Path(folder)))
        started = time.perf_counter()
        analysis = analyzer.analysis(choices(GPTQ))
        choice = analysis.within(analysis.size("4.5bits"))
        analysis = analyzer.check(analysis, choice)
        seconds = time.perf_counter() - started
        plain = analyzer.analysis(
            [each for each in choices("round_to_nearest") if not (isinstance(each, Palette) and each.bits == 3)]
        )
    template = BACKEND.recipe(resolve("demo"), "coreml-4bit")
    return Ours(analysis, plain, analysis.recipe(choice, template, "coreml-mixed-4.5bit"), seconds)


def peer_of(
    kept: Path | None, pipe: Any, prompts: tuple[str, ...], layers: list[str], guidance: float, widths: Any
) -> mixed_peer.Peer:
    """The peer's analysis, from `kept` where that is there."""
    if kept and kept.exists():
        return mixed_peer.parse(json.loads(kept.read_text()))
    found = mixed_peer.analyze(pipe, list(prompts), layers, guidance, widths)
    if kept:
        kept.write_text(json.dumps(found.document()))
    return found


class Bench:
    """Full trajectories on unseen prompts, with the layers treated in one way or another."""

    def __init__(self, pipe: Any, prompts: tuple[str, ...], steps: int, guidance: float) -> None:
        self.pipe, self.prompts, self.steps, self.guidance = pipe, list(prompts), steps, guidance
        self.statistics: Any = None
        pipe.set_progress_bar_config(disable=True)
        self.reference = self.drawn()

    def drawn(self) -> tuple[Any, Any]:
        """Final latents and pictures."""
        latents = self.pipe(
            self.prompts,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=[torch.Generator().manual_seed(SEED + number) for number in range(len(self.prompts))],
            output_type="latent",
        ).images
        with torch.no_grad():
            pictures = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor)[0]
        return latents.numpy(), (pictures / 2 + 0.5).clamp(0, 1).numpy()

    def fidelity(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """The kinds of `PSNR` in dB, with these weights."""
        modules = {name: self.pipe.unet.get_submodule(name) for name in weights}
        before = {name: module.weight.detach().clone() for name, module in modules.items()}
        for name, module in modules.items():
            module.weight.data.copy_(weights[name])
        drawn = self.drawn()
        for name, module in modules.items():
            module.weight.data.copy_(before[name])
        peaks = (float(np.abs(self.reference[0]).max()), 1.0)
        found = {}
        for what, reference, made, peak in zip(("latent", "image"), self.reference, drawn, peaks, strict=True):
            single = [psnr(each, other, peak) for each, other in zip(reference, made, strict=True)]
            found[f"{what} PSNR"] = float(np.mean(single))
            found[f"{what} PSNR, pooled"] = psnr(reference, made, peak)
        return found

    def treated(self, treatments: Mapping[str, Treatment]) -> dict[str, float]:
        """The kinds of `PSNR` in dB, with these treatments."""
        weights = {name: self.pipe.unet.get_submodule(name).weight.detach() for name in treatments}
        return self.fidelity(dict(dequantized(weights, treatments, self.statistics)))


def sizes(bench: Bench, ours: Ours, peer: mixed_peer.Peer, count: int) -> list[dict[str, Any]]:
    """PSNR at the peer's sizes."""
    rows, gains = [], []
    weights = dict(ours.analysis.weights)
    for recipe in peer.recipes(weights, LOW, HIGH, count):
        theirs = {
            name: Float() if bits == mixed_peer.FLOAT else Palette(bits=bits) for name, bits in recipe.items()
        }
        size = int(sum(weights[name] * bits for name, bits in recipe.items()))
        size += sum(16 * 2**bits for bits in recipe.values() if bits < mixed_peer.FLOAT)
        bits = size / sum(weights.values())
        small = ours.plain.treatments_of(ours.plain.within(size))
        best = ours.analysis.treatments_of(ours.analysis.within(size))
        found = [bench.treated(each) for each in (theirs, small, best)]
        gains.append([{what: each[what] - found[0][what] for what in PSNR} for each in found[1:]])
        for kind, each in (("plain", found[1]), ("compensated", found[2])):
            for what in PSNR:
                rows.append(better(f"{bits:.2f} bits per weight, {kind}: {what}", each[what], found[0][what], 0.0))
        print(f"{bits:.2f} bits: peer {found[0]}, plain {found[1]}, compensated {found[2]}", flush=True)
    for place, (kind, target) in enumerate((("plain", 1.0), ("compensated", 5.0))):
        for what in PSNR:
            mean = sum(each[place][what] for each in gains) / len(gains)
            name = f"mean over {len(gains)} sizes, {kind}: {what} above the peer's"
            rows.append(figure(name, mean, None, None, f">= {target:g}", mean >= target, "dB"))
    return rows


def fixed(bench: Bench, analysis: Analysis) -> list[dict[str, Any]]:
    """Mixed 4.5 bit beside uniform 4 bit and linear 8 bit per tensor."""
    choice: Choice = analysis.within(analysis.size("4.5bits"))
    mixed = bench.treated(analysis.treatments_of(choice))
    uniform = bench.treated({name: Palette(bits=4, rounding=GPTQ) for name in analysis.weights})
    weights = {name: bench.pipe.unet.get_submodule(name).weight.detach() for name in analysis.weights}
    linear = bench.fidelity(
        {name: quantize(each, 8, symmetric=True, per="tensor").dequantize() for name, each in weights.items()}
    )
    rows = []
    for what in PSNR:
        name = f"mixed 4.5 bit above uniform 4 bit, both compensated: {what}"
        rows.append(better(name, mixed[what], uniform[what], 3.0))
        name = f"mixed 4.5 bit beside linear 8 bit per tensor: {what}"
        rows.append(figure(name, mixed[what], linear[what], mixed[what] / linear[what], "", None, "dB"))
    return rows


def outliers() -> list[dict[str, Any]]:
    """A layer of 1,280 by 1,280 with outliers, such as SDXL has: why linear 8 bit per tensor fails there."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for label, count, factor in (("no outliers", 0, 1.0), ("16 outliers of 100 sigma", 16, 100.0)):
        weight = 0.02 * torch.randn(1280, 1280, generator=generator)
        weight.flatten()[torch.randperm(weight.numel(), generator=generator)[:count]] *= factor
        linear = noise(weight, quantize(weight, 8, symmetric=True, per="tensor").dequantize())
        for bits in (4, 6):
            ours = noise(weight, palettize(weight.half(), bits).dequantize())
            name = f"1,280 x 1,280 normal weights, {label}: {bits}-bit palette beside linear 8 bit per tensor, SNR"
            rows.append(figure(name, ours, linear, ours / linear, "", None, "dB"))
    return rows


def noise(weight: Tensor, approximation: Tensor) -> float:
    """Signal to noise of all weights but the outliers, in dB."""
    body = weight.abs() < 0.2
    return float(10 * torch.log10(weight[body].square().sum() / (approximation - weight)[body].square().sum()))


def better(name: str, ours: float, peer: float, least: float) -> dict[str, Any]:
    return figure(name, ours, peer, ours / peer, f">= peer + {least:g}", ours - peer >= least, "dB")


def cost(name: str, ours: float, peer: float, share: int, unit: str) -> dict[str, Any]:
    return figure(name, ours, peer, ours / peer, f"<= 1/{share}", ours / peer <= 1 / share, unit)


def figure(
    name: str, ours: float, peer: float | None, ratio: float | None, target: str, met: bool | None, unit: str
) -> dict[str, Any]:
    return {"figure": name, "ours": ours, "peer": peer, "ratio": ratio, "target": target, "met": met, "unit": unit}


if __name__ == "__main__":
    main()
