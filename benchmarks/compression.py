"""Palettes beside coremltools' own: time, squared error, memory, on weights of the SD 1.5 UNet's shape.

The peer is `palettize_weights.blockwise_compress` in mode KMEANS, which coremltools' `palettize_weights` calls for
every weight; the Core ML model that the latter wants takes 15 GB to make at this size. Layer after layer, ours and
the peer take turns. For groups of 16 channels the peer does two groups of a layer, and its time is
multiplied by the layer's groups over two. The exact optimum is that of coremltools' `kmeans1d` (SMAWK).

`--quick` takes one layer of each of seven shapes; the whole takes all 280 layers of at least 100,000 weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import torch
from torch import Tensor

from sdhub.compression.histogram import histogram
from sdhub.compression.palettize import palettize

BITS, GROUP, PEER_GROUPS = 6, 16, 2
WIDTHS = (1, 2, 3, 4, 6, 8)
QUICK = (
    (320, 320),
    (1280, 1280),
    (640, 2560),
    (10240, 1280),
    (320, 320, 3, 3),
    (640, 640, 3, 3),
    (1280, 1280, 3, 3),
)
JUDGED = (*QUICK, (1280, 768), (1280, 2560, 3, 3), (1280, 5120))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("times", "errors"))
    given = parser.parse_args()
    layers = shapes.large(shapes.sd15_unet())
    chosen = {shape: name for name, shape in reversed(layers.items()) if not given.quick or shape in QUICK}
    names = list(chosen.values()) if given.quick else list(layers)
    picked = {name: layers[name] for name in names}
    rows = [] if given.only == "errors" else [memory(layers), *times(picked, len(layers))]
    rows += [] if given.only == "times" else errors(JUDGED[:2] if given.quick else JUDGED)
    for row in rows:
        cells = ["" if row[each] is None else f"{row[each]:.5g}" for each in ("ours", "peer", "ratio")]
        print(f"{row['figure']:100} {cells[0]:>10} {cells[1]:>10} {cells[2]:>10}  {row['target']}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def memory(layers: shapes.Shapes) -> dict[str, Any]:
    """Peak memory that the widest layer takes above its weight, per tensor and in groups. Must run first."""
    name, shape = max(layers.items(), key=lambda item: torch.Size(item[1]).numel())
    weight = shapes.weight_of(name, shape)
    palettize(weight[:8], 2)
    current = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")
    for group_size in (None, GROUP):
        palettize(weight, BITS, group_size=group_size)
    palettize(weight, 8)
    above = (peak_bytes() - current) / 2**30
    name = f"peak memory above a weight of {weight.numel():,}, 6 bit per tensor and grouped, 8 bit"
    return figure(name, above, None, None, "<= 1", above <= 1, "GiB")


def peak_bytes() -> int:
    """The most memory since `clear_refs` was written, from the kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def times(layers: shapes.Shapes, total: int) -> list[dict[str, Any]]:
    """Seconds for all of `layers`, per tensor and in groups of 16 channels."""
    compress = peer()
    palettize(torch.randn(64, 64), BITS)
    ours, theirs, grouped, their_grouped = (0.0,) * 4
    for number, (name, weight) in enumerate(shapes.weights(layers)):
        part = weight[: GROUP * PEER_GROUPS].numpy()
        share = weight.shape[0] / (GROUP * PEER_GROUPS)
        mine, peers = in_turn(
            lambda weight=weight: palettize(weight, BITS),
            lambda weight=weight: compress(weight.numpy(), "KMEANS", BITS, [0] * weight.ndim),
            number,
        )
        mine_grouped, peers_grouped = in_turn(
            lambda weight=weight: palettize(weight, BITS, group_size=GROUP),
            lambda part=part: compress(part, "KMEANS", BITS, [GROUP, *[0] * (part.ndim - 1)]),
            number,
        )
        ours, theirs = ours + mine, theirs + peers
        grouped, their_grouped = grouped + mine_grouped, their_grouped + peers_grouped * share
        print(f"{name}: {mine:.3f} {peers:.3f} {mine_grouped:.3f} {peers_grouped * share:.3f}", flush=True)
    which = f"{BITS}-bit palettes, {len(layers)} of {total} layers of the SD 1.5 shape"
    per_tensor, per_group = theirs / ours, their_grouped / grouped
    return [
        figure(f"{which}, per tensor", ours, theirs, per_tensor, ">= 30", per_tensor >= 30, "s"),
        figure(
            f"{which}, groups of {GROUP} channels (peer: {PEER_GROUPS} groups a layer, extrapolated)",
            grouped,
            their_grouped,
            per_group,
            ">= 30",
            per_group >= 30,
            "s",
        ),
    ]


def errors(judged: tuple[tuple[int, ...], ...]) -> list[dict[str, Any]]:
    """The greatest ratio of squared error to the optimum, width by width."""
    from coremltools._deps import kmeans1d

    worst: dict[int, tuple[float, float, float]] = {}
    for shape in judged:
        weight = shapes.weight_of(f"judged {shape}", shape)
        values, counts = histogram(weight)
        for bits in WIDTHS:
            best = np.array(kmeans1d.cluster(values, 1 << bits, weights=counts).centroids)
            ours = squared_error(weight, palettize(weight, bits).table.view(-1))
            optimum = squared_error(weight, torch.from_numpy(best).float())
            worst[bits] = max(worst.get(bits, (0.0, 0.0, 0.0)), (ours / optimum, ours, optimum))
    return [
        figure(
            f"squared error of {bits}-bit palettes, worst of {len(judged)} layers, peer: optimum",
            ours,
            optimum,
            ratio,
            "<= 1.001",
            ratio <= 1.001,
            "",
        )
        for bits, (ratio, ours, optimum) in worst.items()
    ]


def squared_error(weight: Tensor, table: Tensor) -> float:
    """Against the nearest entry of an ascending table, in float64."""
    exact, entries = weight.reshape(-1).double(), table.double()
    nearest = entries[torch.bucketize(exact, (entries[1:] + entries[:-1]) / 2)]
    return float((exact - nearest).square().sum())


def peer() -> Callable[..., Any]:
    from coremltools.optimize.coreml._quantization_passes import palettize_weights

    compress: Callable[..., Any] = palettize_weights.blockwise_compress
    return compress


def in_turn(mine: Callable[[], Any], theirs: Callable[[], Any], number: int) -> tuple[float, float]:
    """Seconds of both; which goes first changes from layer to layer."""
    if number % 2:
        peers = seconds(theirs)
        return seconds(mine), peers
    return seconds(mine), seconds(theirs)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def figure(
    name: str, ours: float, peer: float | None, ratio: float | None, target: str, met: bool, unit: str
) -> dict[str, Any]:
    return {"figure": name, "ours": ours, "peer": peer, "ratio": ratio, "target": target, "met": met, "unit": unit}


if __name__ == "__main__":
    main()
