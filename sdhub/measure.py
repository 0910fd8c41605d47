"""Drawing for evidence: the base in this process, a variant in one of its own, so that its memory is its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdhub.backends.base import backends
from sdhub.evidence.sampling import Sample, Sampling, draw
from sdhub.progress import Progress
from sdhub.quiet import quiet


def draw_all(pipe: Any, sampling: Sampling, progress: Progress, label: str) -> list[Sample]:
    """One sample per prompt, with a bar that counts sampling steps."""
    samples = []
    with progress.task(label, total=len(sampling.prompts) * sampling.steps, unit="steps") as task, quiet():
        for prompt in sampling.prompts:
            samples.append(draw(pipe, prompt, sampling, on_step=lambda _: task.advance()))
    return samples


def draw_variant(backend: str, folder: Path, sampling: Sampling, out: Path, progress: Progress) -> None:
    """Draw a variant into `out`: its samples, and `memory.json` with the peak memory of this process."""
    from sdhub.evidence import memory, samples

    with quiet():
        pipe = backends()[backend].open(folder)
    samples.save(out, draw_all(pipe, sampling, progress, "drawing"))
    (out / "memory.json").write_text(json.dumps({"peak_mib": memory.peak_mib()}))
