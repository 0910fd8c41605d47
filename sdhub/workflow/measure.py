"""What is measured, each in a process that does nothing else: its memory is its own, and given back."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from sdhub.backends.base import backends
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.fetch import fetch
from sdhub.checkpoint.load import load
from sdhub.core.hub import Hub
from sdhub.core.progress import Progress
from sdhub.core.quiet import quiet
from sdhub.evidence import latency, noise, samples
from sdhub.evidence.budget import NOISE_PROMPTS, POINTS
from sdhub.evidence.compare import machine
from sdhub.evidence.memory import peak_mib
from sdhub.evidence.sampling import Sample, Sampling, draw

DRAWING, NOISE, LATENCY = "drawing.json", "noise.json", "latency.json"
KEPT_BYTES = 4 * 2**30  # of a denoiser in float32, beyond which weights of 16 bits stay so, and compute in 32


def load_base(checkpoint: Checkpoint, hub: Hub, progress: Progress, *, half_precision: bool = False) -> Any:
    """The checkpoint as a float32 pipeline, downloaded if need be; `half_precision` as in `load`."""
    path = fetch(checkpoint, hub, progress=progress)
    with progress.task(f"loading {checkpoint.name}"), quiet():
        return load(checkpoint, path, half_precision=half_precision, hub=hub)


def load_to_draw(checkpoint: Checkpoint, hub: Hub, progress: Progress) -> Any:
    """The base as it is drawn with and timed: a large denoiser's 16-bit weights are widened a layer at a time."""
    part = checkpoint.component(checkpoint.family.denoiser)
    large = part is not None and 4 * part.parameters > KEPT_BYTES
    return load_base(checkpoint, hub, progress, half_precision=large)


def draw_all(pipe: Any, sampling: Sampling, progress: Progress) -> list[Sample]:
    """One sample per prompt, with a bar that counts sampling steps."""
    return _drawn(pipe, sampling, progress)[0]


def draw_base(checkpoint: Checkpoint, hub: Hub, sampling: Sampling, out: Path, progress: Progress) -> None:
    """Write what the base draws, the points of its first trajectories, and what drawing took."""
    pipe = load_to_draw(checkpoint, hub, progress)
    with noise.recorded(pipe) as points:
        _draw(pipe, sampling, out, progress)
    count = len(sampling.prompts)
    length = len(points) // count
    kept = [points[n * length : (n + 1) * length] for n in range(min(count, NOISE_PROMPTS))]
    noise.save(out, kept)


def draw_variant(
    backend: str, folder: Path, sampling: Sampling, reference: Path, out: Path, progress: Progress
) -> None:
    """Write what a variant draws, what drawing took, and its noise SNR on the trajectories in `reference`."""
    with quiet():
        pipe = backends()[backend].open(folder)
    found = noise_snr(pipe, noise.load(reference), sampling, progress)
    (out / NOISE).write_text(json.dumps(found.document()))
    _draw(pipe, sampling, out, progress)


def noise_snr(
    pipe: Any, trajectories: Sequence[noise.Trajectory], sampling: Sampling, progress: Progress
) -> noise.NoiseSnr:
    """The noise SNR of a variant on the trajectories of the first prompts, with a bar that counts predictions."""
    prompts = sampling.prompts[: len(trajectories)]
    total = sum(len(noise.points_of(pipe, len(each), POINTS)) for each in trajectories)
    with progress.task("predicting", total=total, unit="predictions") as task, quiet():
        return noise.noise_snr(pipe, trajectories, prompts, sampling, on_call=task.advance)


def time_variant(
    checkpoint: Checkpoint,
    hub: Hub,
    backend: str,
    folder: Path,
    sampling: Sampling,
    beside: bool,
    out: Path,
    progress: Progress,
) -> None:
    """Write the speed of a variant beside its base's, and beside the same runtime without compression too where
    `beside` says so; `out` may hold that for a while.
    """
    maker, base, place = backends()[backend], load_to_draw(checkpoint, hub, progress), out / "plain"
    place.mkdir()
    try:
        name = maker.plain(checkpoint, base, folder, place) if beside else None
        with quiet():
            variant = maker.open(folder)
            reference = (name, maker.open(place)) if name else None
        timed = latency.alternate(base, variant, sampling, reference=reference, progress=progress)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    timed = replace(timed, settings=maker.settings(variant))
    (out / LATENCY).write_text(json.dumps(timed.document()))


def _draw(pipe: Any, sampling: Sampling, out: Path, progress: Progress) -> None:
    drawn, encoding, decoding = _drawn(pipe, sampling, progress)
    samples.save(out, drawn)
    took = {
        "machine": machine(),
        "peak_mib": peak_mib(),
        "encode_seconds": statistics.median(encoding),
        "decode_seconds": statistics.median(decoding),
    }
    (out / DRAWING).write_text(json.dumps(took))


def _drawn(pipe: Any, sampling: Sampling, progress: Progress) -> tuple[list[Sample], list[float], list[float]]:
    """One sample per prompt; and for each the seconds before its first step, and those after its last.

    The first step counts as long as the median of the others, so that what is left of the time to its end is what
    goes before it.
    """
    drawn, encoding, decoding = [], [], []
    with progress.task("drawing", total=len(sampling.prompts) * sampling.steps, unit="steps") as task, quiet():
        for prompt in sampling.prompts:
            ticks = [time.perf_counter()]

            def step(_: int, ticks: list[float] = ticks) -> None:
                ticks.append(time.perf_counter())
                task.advance()

            drawn.append(draw(pipe, prompt, sampling, on_step=step))
            between = [after - before for before, after in pairwise(ticks[1:])]
            encoding.append(max(0.0, ticks[1] - ticks[0] - statistics.median(between or [0.0])))
            decoding.append(time.perf_counter() - ticks[-1])
    return drawn, encoding, decoding
