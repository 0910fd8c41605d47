"""What is measured, each in a process that does nothing else: its memory is its own, and given back."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from sdhub.backends.base import backends
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.cost import stays_half
from sdhub.checkpoint.fetch import fetch
from sdhub.checkpoint.load import load
from sdhub.core.device import CPU, described, of_pipeline, precision, resolve
from sdhub.core.hub import Hub
from sdhub.core.progress import Progress
from sdhub.core.quiet import quiet
from sdhub.evidence import latency, noise, samples
from sdhub.evidence.budget import NOISE_PROMPTS, POINTS
from sdhub.evidence.compare import machine
from sdhub.evidence.memory import peak_mib
from sdhub.evidence.sampling import Sample, Sampling, draw

DRAWING, NOISE, LATENCY = "drawing.json", "noise.json", "latency.json"
Where: TypeAlias = "tuple[str, str | None]"  # the devices of torch and of the variant's own runtime


def load_base(
    checkpoint: Checkpoint,
    hub: Hub,
    progress: Progress,
    *,
    half_precision: bool = False,
    device: str = CPU,
    drawing: bool = False,
) -> Any:
    """The checkpoint as a float32 pipeline on `device`, downloaded if need be; `half_precision` as in `load`.

    `drawing`: in the precision that suits the device (`sdhub.core.device.precision`).
    """
    where = resolve(device)
    dtype = precision(where, checkpoint.family.denoiser) if drawing else "float32"
    path = fetch(checkpoint, hub, progress=progress)
    with progress.task(f"loading {checkpoint.name}"), quiet():
        return load(checkpoint, path, dtype=dtype, half_precision=half_precision, device=where, hub=hub)


def load_to_draw(
    checkpoint: Checkpoint, hub: Hub, device: str, progress: Progress, *, converted: bool = False
) -> Any:
    """The base as it is drawn with and timed; on the CPU a large denoiser's 16-bit weights are widened a layer at
    a time, but where it will be `converted`: no converter takes a layer of two types."""
    half_precision = device == CPU and stays_half(checkpoint) and not converted
    return load_base(checkpoint, hub, progress, half_precision=half_precision, device=device, drawing=True)


def draw_all(pipe: Any, sampling: Sampling, progress: Progress) -> list[Sample]:
    """One sample per prompt, with a bar that counts sampling steps."""
    return _drawn(pipe, sampling, progress)[0]


def draw_base(
    checkpoint: Checkpoint, hub: Hub, device: str, sampling: Sampling, out: Path, progress: Progress
) -> None:
    """Write what the base draws, the points of its first trajectories, and what drawing took."""
    pipe = load_to_draw(checkpoint, hub, device, progress)
    with noise.recorded(pipe) as points:
        _draw(pipe, sampling, out, described(pipe), progress)
    count = len(sampling.prompts)
    length = len(points) // count
    kept = [points[n * length : (n + 1) * length] for n in range(min(count, NOISE_PROMPTS))]
    noise.save(out, kept)


def draw_variant(
    backend: str, folder: Path, where: Where, sampling: Sampling, reference: Path, out: Path, progress: Progress
) -> None:
    """Write what a variant draws, what drawing took, and its noise SNR on the trajectories in `reference`."""
    maker = backends()[backend]
    with quiet():
        pipe = maker.open(folder, *where)
    found = noise_snr(pipe, noise.load(reference), sampling, progress)
    (out / NOISE).write_text(json.dumps(found.document()))
    ran = {**maker.described(pipe), "kernels": maker.kernels(folder, resolve(where[0]))}
    _draw(pipe, sampling, out, ran, progress)


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
    where: Where,
    sampling: Sampling,
    beside: bool,
    out: Path,
    progress: Progress,
) -> None:
    """Write the speed of a variant beside its base's, and beside the same runtime without compression too where
    `beside` says so; `out` may hold that for a while.

    The base is on the variant's device, or on the CPU beside a runtime that is not torch.
    """
    maker, place = backends()[backend], out / "plain"
    base = load_to_draw(checkpoint, hub, where[0] if maker.on_torch else CPU, progress, converted=beside)
    place.mkdir()
    try:
        name = maker.plain(checkpoint, base, folder, place) if beside else None
        with quiet():
            variant = maker.open(folder, *where)
            reference = (name, maker.open(place, *where)) if name else None
        timed = latency.alternate(base, variant, sampling, reference=reference, progress=progress)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    settings = dict(maker.settings(variant))
    if where[0] != CPU:
        settings["base"] = ", ".join(described(base).values())
    (out / LATENCY).write_text(json.dumps(replace(timed, settings=settings).document()))


def _draw(pipe: Any, sampling: Sampling, out: Path, ran: Mapping[str, Any], progress: Progress) -> None:
    drawn, encoding, decoding = _drawn(pipe, sampling, progress)
    samples.save(out, drawn)
    took = {
        "machine": machine(),
        "ran": dict(ran),
        "peak_mib": peak_mib(of_pipeline(pipe)),
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
