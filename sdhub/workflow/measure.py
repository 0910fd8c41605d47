"""Drawing for evidence, and the peak memory of it, each in a process that does nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdhub.backends.base import backends
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.fetch import fetch
from sdhub.checkpoint.load import load
from sdhub.core.device import CPU, of_pipeline, precision, resolve
from sdhub.core.hub import Hub
from sdhub.core.progress import Progress
from sdhub.core.quiet import quiet
from sdhub.evidence import noise
from sdhub.evidence.sampling import Sample, Sampling, draw

PEAK_STEPS = 2


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


def draw_all(pipe: Any, sampling: Sampling, progress: Progress) -> list[Sample]:
    """One sample per prompt, with a bar that counts sampling steps."""
    samples = []
    with progress.task("drawing", total=len(sampling.prompts) * sampling.steps, unit="steps") as task, quiet():
        for prompt in sampling.prompts:
            samples.append(draw(pipe, prompt, sampling, on_step=lambda _: task.advance()))
    return samples


def noise_snr(
    pipe: Any, trajectories: Sequence[noise.Trajectory], sampling: Sampling, progress: Progress
) -> noise.NoiseSnr:
    """The noise SNR of a variant on the trajectories of the first prompts, with a bar that counts predictions."""
    prompts = sampling.prompts[: len(trajectories)]
    total = sum(len(noise.points_of(pipe, len(each), noise.POINTS)) for each in trajectories)
    with progress.task("predicting", total=total, unit="predictions") as task, quiet():
        return noise.noise_snr(pipe, trajectories, prompts, sampling, on_call=task.advance)


def peak_of_base(
    checkpoint: Checkpoint, hub: Hub, device: str, sampling: Sampling, out: Path, progress: Progress
) -> None:
    """Write the peak memory of this process, in MiB, of loading the base and drawing one picture."""
    _write_peak(load_base(checkpoint, hub, progress, device=device, drawing=True), sampling, out, progress)


def peak_of_variant(
    backend: str,
    folder: Path,
    device: str,
    runtime_device: str | None,
    sampling: Sampling,
    out: Path,
    progress: Progress,
) -> None:
    """Write the peak memory of this process, in MiB, of loading a variant and drawing one picture."""
    with quiet():
        pipe = backends()[backend].open(folder, device, runtime_device)
    _write_peak(pipe, sampling, out, progress)


def _write_peak(pipe: Any, sampling: Sampling, out: Path, progress: Progress) -> None:
    """Few steps do: each takes the same memory. On a GPU it is that of the GPU."""
    from sdhub.evidence.memory import peak_mib

    draw_all(pipe, replace(sampling, prompts=sampling.prompts[:1], steps=PEAK_STEPS), progress)
    out.write_text(json.dumps(peak_mib(of_pipeline(pipe))))
