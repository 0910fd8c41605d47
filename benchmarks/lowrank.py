"""Low rank: randomized SVD beside `torch.linalg.svd`, and the alternating fit beside one SVD.

For rank 32 of 3072 × 3072 and 12288 × 3072: how many times faster, and how much more error than the exact
truncation. On the transformer linears of the built-in checkpoint: the output error of low rank + 4-bit residual
(groups of 64, asymmetric) over that of one SVD followed by rounding, judged on other tokens of the prompts that
calibration saw, and on prompts, seeds and a step count that it did not see.

`--quick` takes 1024 × 1024 and 2048 × 1024, fewer prompts and every fourth layer.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sdhub.compression.calibration import LayerStatistics, collect, spread, trajectories
from sdhub.compression.lowrank import decompose, randomized_svd
from sdhub.compression.trajectories import Drive, Switch

RANK = 32
FULL, QUICK = ((3072, 3072), (12288, 3072)), ((1024, 1024), (2048, 1024))
SEEN = (
    "pizza", "dog face", "red heart", "hamburger", "frog", "soccer ball", "red apple", "sun with face",
    "banana", "panda", "tiger face", "cake", "cherries", "grapes", "crescent moon", "rabbit face",
    "cookie", "doughnut", "egg", "key", "bell", "ice cream", "lemon", "mushroom",
)  # fmt: skip
UNSEEN = ("cat face", "taco", "green apple", "basketball", "bear", "pear", "fish", "strawberry")


Statistics: TypeAlias = "dict[str, LayerStatistics]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    rows = []
    for row in figures(quick=given.quick):
        rows.append(row)
        line = f"{row['figure']:76} {row['ours']:9.4f} {row['peer']:9.4f} {row['ratio']:9.4f} {row['target']:9}"
        print(line, "" if row["met"] else "MISSED", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def figures(*, quick: bool) -> Iterator[dict[str, Any]]:
    for shape in QUICK if quick else FULL:
        yield from svd_figures(*shape)
    yield from decomposition_figures(quick=quick)


def heavy_tailed(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Random weights (Student's t, 5 degrees of freedom, scales per output channel): a spectrum without gaps."""
    generator = torch.Generator().manual_seed(seed)
    chi = sum(torch.randn(rows, columns, generator=generator) ** 2 for _ in range(5)) / 5
    scale = torch.exp(0.5 * torch.randn(rows, 1, generator=generator))
    return torch.randn(rows, columns, generator=generator) / torch.as_tensor(chi).sqrt() * scale


def svd_figures(rows: int, columns: int) -> list[dict[str, Any]]:
    """Time and error of rank 32; Gaussian weights are the flattest spectrum there is."""
    figures = []
    for kind, matrix in (
        ("heavy-tailed", heavy_tailed(rows, columns)),
        ("Gaussian", torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))),
    ):
        name = f"rank {RANK} of {rows} x {columns}, {kind}"
        randomized_svd(matrix[:256, :256], RANK)
        seconds, mine = timed(lambda matrix=matrix: randomized_svd(matrix, RANK))
        exact_seconds, (left, values, right) = timed(
            lambda matrix=matrix: torch.linalg.svd(matrix, full_matrices=False)
        )
        again, _ = timed(lambda matrix=matrix: randomized_svd(matrix, RANK))
        seconds = (seconds + again) / 2
        best = (left[:, :RANK] * values[:RANK]) @ right[:RANK]
        error, optimum = relative(matrix, mine.dense()), relative(matrix, best)
        ratio = exact_seconds / seconds
        figures.append(figure(f"{name}: time", seconds, exact_seconds, ratio, ">= 10", ratio >= 10, "s"))
        figures.append(
            figure(f"{name}: error", error, optimum, error / optimum, "<= 1.001", error <= 1.001 * optimum, "")
        )
    return figures


def decomposition_figures(*, quick: bool) -> list[dict[str, Any]]:
    """Output error of every variant over that of one SVD and rounding: geometric means over layers."""
    unet, seen, judges = calibrated(quick=quick)
    errors: dict[tuple[str, str], list[tuple[float, float]]] = {
        (way, judge): [] for way in WAYS for judge in judges
    }
    for name, layer in seen.items():
        weight = unet.get_submodule(name).weight.detach().float()
        branch = randomized_svd(weight, RANK).dense()
        once = branch + round_to_4_bits(weight - branch)
        for way, (make, _) in WAYS.items():
            mine = make(weight, layer)
            for judge, found in judges.items():
                gram = whole(found[name])
                errors[way, judge].append((output_error(weight, mine, gram), output_error(weight, once, gram)))
    figures = []
    for (way, judge), pairs in errors.items():
        ours, peer = (math.exp(sum(math.log(pair[side]) for pair in pairs) / len(pairs)) for side in (0, 1))
        limit = WAYS[way][1]
        figures.append(
            figure(
                f"emoji-sd, {len(pairs)} linears, 4 bit + rank {RANK}: {way}, {judge}",
                ours,
                peer,
                ours / peer,
                f"<= {limit}" if limit else "",
                not limit or ours <= limit * peer,
                "relative output error",
            )
        )
    return figures


def calibrated(*, quick: bool) -> tuple[torch.nn.Module, Statistics, Mapping[str, Statistics]]:
    """The built-in checkpoint's denoiser; its linears as calibration sees them, and as they are judged."""
    from diffusers import StableDiffusionPipeline

    from sdhub.demo import emoji_sd

    pipe = StableDiffusionPipeline.from_pretrained(emoji_sd(), torch_dtype=torch.float32)
    linears = [
        name
        for name, module in pipe.unet.named_modules()
        if isinstance(module, torch.nn.Linear) and "transformer_blocks" in name
    ][:: 4 if quick else 1]

    def trajectory(prompts: Sequence[str], first: int, steps: int) -> Drive:
        seeds = range(first, first + len(prompts))
        return trajectories(pipe, prompts, seeds, steps=steps, guidance=4.0, keep=spread(steps, 8))

    def statistics(drive: Drive, seed: int = 0) -> Statistics:
        return collect(pipe.unet, drive, linears, gram=True, gram_rows=192, tokens=0, seed=seed)

    count = 8 if quick else len(SEEN)
    other_tokens: Statistics = {}

    def twice(first: Switch) -> None:
        """One pass for two collections that draw different rows."""
        run = trajectory(SEEN[:count], 0, 20)
        other_tokens.update(statistics(lambda second: run(lambda on: (first(on), second(on))[0]), seed=1))

    seen = statistics(twice)
    other_prompts = statistics(trajectory(UNSEEN[: count // 2], 1000, 15))
    return pipe.unet, seen, {"other tokens": other_tokens, "other prompts": other_prompts}


def round_to_4_bits(values: Tensor) -> Tensor:
    """Asymmetric, groups of 64 columns, dequantized."""
    groups = values.reshape(values.shape[0], -1, 64)
    low = groups.amin(-1, keepdim=True)
    step = (groups.amax(-1, keepdim=True) - low).clamp(min=1e-12) / 15
    return ((groups - low) / step).round().mul(step).add(low).reshape(values.shape)


def fitted(weight: Tensor, gram: Any) -> Tensor:
    result = decompose(weight, RANK, round_to_4_bits, gram=gram)
    return result.low_rank.dense() + result.residual


def whole(layer: LayerStatistics) -> Tensor:
    """The Gram matrix, (K, K)."""
    return torch.block_diag(*(layer.gram or ()))


def output_error(weight: Tensor, approximation: Tensor, gram: Tensor) -> float:
    """‖X(Ŵ − W)ᵀ‖ / ‖XWᵀ‖ over the rows in the Gram matrix."""
    error, weight, gram = (weight - approximation).double(), weight.double(), gram.double()
    return math.sqrt(float((error @ gram * error).sum() / (weight @ gram * weight).sum()))


def relative(matrix: Tensor, approximation: Tensor) -> float:
    return float((matrix - approximation).double().norm() / matrix.double().norm())


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def figure(name: str, ours: float, peer: float, ratio: float, target: str, met: bool, unit: str) -> dict[str, Any]:
    return {"figure": name, "ours": ours, "peer": peer, "ratio": ratio, "target": target, "met": met, "unit": unit}


# How each variant is made, and the most it may lose of what one SVD and rounding loses.
WAYS: Mapping[str, tuple[Callable[[Tensor, LayerStatistics], Tensor], float]] = {
    "no low rank": (lambda weight, _: round_to_4_bits(weight), 0),
    "alternating": (lambda weight, _: fitted(weight, None), 0.6),
    "alternating, weighted by channel": (lambda weight, layer: fitted(weight, whole(layer).diagonal()), 0.52),
    "alternating, weighted by the Gram matrix": (lambda weight, layer: fitted(weight, layer.gram), 0.3),
}

if __name__ == "__main__":
    main()
