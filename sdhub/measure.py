"""Evidence for one variant: base and variant drawn alike, timed in alternation, compared.

The variant is drawn in a process of its own (`python -m sdhub.measure`), so that its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from sdhub.backends.base import Backend, backends
from sdhub.errors import EvidenceError
from sdhub.evidence.sampling import Sample, Sampling, draw, parse_sampling
from sdhub.progress import Progress, Task
from sdhub.quiet import quiet


def draw_all(pipe: Any, sampling: Sampling, progress: Progress, label: str) -> list[Sample]:
    """One sample per prompt, with a bar that counts sampling steps."""
    samples = []
    with progress.task(label, total=len(sampling.prompts) * sampling.steps, unit="steps") as task, quiet():
        for prompt in sampling.prompts:
            samples.append(draw(pipe, prompt, sampling, on_step=lambda _: task.advance()))
    return samples


def draw_apart(backend: Backend, folder: Path, sampling: Sampling, out: Path, progress: Progress) -> None:
    """Draw a variant in a process of its own into `out`: its samples and `memory.json`. Raises EvidenceError."""
    job = {"backend": backend.name, "folder": str(folder), "sampling": sampling.document(), "out": str(out)}
    with progress.task(
        f"drawing with {folder.name}", total=len(sampling.prompts) * sampling.steps, unit="steps"
    ) as task:
        process = subprocess.Popen(
            [sys.executable, "-m", "sdhub.measure"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise EvidenceError("the drawing process has no pipes")
        said: list[str] = []
        listener = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
        listener.start()
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                if line == "step\n":
                    task.advance()
        finally:
            process.stdin.close()
        code = process.wait()
        listener.join()
    if code != 0:
        reason = next((line.strip() for line in reversed(said) if line.strip()), f"exit code {code}")
        raise EvidenceError(f"{folder.name} does not draw: {reason[:300]}")


class _Steps(Progress):
    """Tells the parent of every sampling step."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    @contextmanager
    def task(self, label: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        yield _Step(self._out)


class _Step(Task):
    def __init__(self, out: TextIO) -> None:
        self._out = out

    def advance(self, amount: float = 1.0) -> None:
        self._out.write("step\n")
        self._out.flush()


def _work(job: Mapping[str, Any], out: TextIO) -> None:
    from sdhub.evidence import memory, samples

    backend = backends()[job["backend"]]
    sampling = parse_sampling(job["sampling"])
    with quiet():
        pipe = backend.open(Path(job["folder"]))
    steps = _Steps(out)
    drawn = draw_all(pipe, sampling, steps, "")
    folder = Path(job["out"])
    samples.save(folder, drawn)
    (folder / "memory.json").write_text(json.dumps({"peak_mib": memory.peak_mib()}))


def main() -> None:
    """The drawing process: a job on standard input, `step` lines on standard output; ends with its parent."""
    out = sys.stdout
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_follow_parent, daemon=True).start()
    _work(job, out)


def _follow_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
