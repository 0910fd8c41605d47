"""Variants as a user has them: a folder, or a repository on a Hub."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdhub.backends.base import Backend, backends
from sdhub.backends.variant.gate import Vetted, vet
from sdhub.checkpoint.tree import Folder
from sdhub.core.device import AUTO, vet_word
from sdhub.core.documents import shown
from sdhub.core.endpoint import connect
from sdhub.core.errors import BuildError, SourceError
from sdhub.core.progress import SILENT, Progress
from sdhub.core.quiet import quiet
from sdhub.evidence.sampling import Prompt, Sampling, bounded, draw, usual_sampling

STEPS, GUIDANCE = 20, 7.5


def load(
    variant: str | Path, *, hub: str | None = None, device: str = AUTO, runtime_device: str | None = None
) -> Any:
    """A variant as a pipeline of diffusers' calling convention.

    `variant` is a folder, or a repository id on `hub` ("local", an address, or None for the default). `device`: a
    word of `sdhub.core.device`, where torch computes; `runtime_device`: where the variant's own runtime does, if
    it has a choice (OpenVINO: CPU, GPU, NPU). Raises SourceError, HubError, BuildError, UsageError.
    """
    vet_word(device)
    folder = locate(variant, hub=hub)
    with quiet():
        return backend_of_folder(folder).open(folder, device, runtime_device)


def locate(variant: str | Path, *, hub: str | None = None) -> Path:
    """The variant's folder, downloaded where it is a repository. Raises SourceError, HubError."""
    folder = Path(variant)
    if folder.is_dir():
        return folder
    text = str(variant)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise SourceError(
            f"{text}: no such folder", hint="name a variant's folder, or its repository as NAMESPACE/NAME"
        )
    with connect(hub) as at:
        return Path(at.read(text, lambda: at.api.snapshot_download(text, ignore_patterns=["*.zip"])))


def vet_folder(folder: Path) -> Vetted:
    """Hold a folder against what the variants of its backend are. Raises UnsafeError, SourceError, BuildError."""
    return vet(folder, backend_of_folder(folder).layout())


def backend_of_folder(folder: Path) -> Backend:
    """The backend that opens the folder. Raises BuildError, UnsafeError where it holds what is no file."""
    Folder(folder)  # nothing is read that leads out of it, or never ends
    for backend in backends().values():
        if backend.recognizes(folder):
            return backend
    raise BuildError(
        f"{shown(folder)}: no installed backend recognizes this variant",
        hint=f"there are: {', '.join(backends())}",
    )


def sampling_of(folder: Path, pipe: Any, prompt: Prompt, *, steps: int | None, guidance: float | None) -> Sampling:
    """How to draw with a variant: as its evidence says that users do, where it has some.

    Raises SourceError for evidence that is broken, or beyond the bounds of what is drawn.
    """
    known = usual_sampling(folder)
    if known is None:
        side = _side(pipe)
        known = bounded(Sampling((prompt,), STEPS, GUIDANCE, side, side), shown(folder.name))
    return replace(
        known,
        prompts=(prompt,),
        steps=steps or known.steps,
        guidance=known.guidance if guidance is None else guidance,
    )


def _side(pipe: Any) -> int:
    """Pixels of a picture of the size that the denoiser was made for."""
    unet = getattr(pipe, "unet", None)
    latents = pipe.default_sample_size if unet is None else unet.config.sample_size
    return int(latents * pipe.vae_scale_factor)


def generate(
    variant: str | Path,
    prompt: str,
    output: str | Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
    hub: str | None = None,
    device: str = AUTO,
    runtime_device: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Draw one picture into `output` (PNG) of `size` (width, height) in pixels; returns what was done.

    What is not said is the variant's own. Raises what `load` raises.
    """
    output = Path(output)
    if not prompt.strip():
        raise SourceError("the prompt is empty", hint="say what to draw")
    if not output.absolute().parent.is_dir():
        raise SourceError(f"{output}: its folder does not exist")
    if output.is_dir():
        raise SourceError(f"{output} is a folder", hint="name a file, such as picture.png")
    vet_word(device)
    folder = locate(variant, hub=hub)
    backend = backend_of_folder(folder)
    with progress.task("loading"), quiet():
        pipe = backend.open(folder, device, runtime_device)
    sampling = sampling_of(folder, pipe, Prompt(prompt, seed), steps=steps, guidance=guidance)
    if size:
        sampling = replace(sampling, width=size[0], height=size[1])
    started = time.perf_counter()
    with progress.task("drawing", total=sampling.steps, unit="steps") as task, quiet():
        sample = draw(pipe, sampling.prompts[0], sampling, on_step=lambda _: task.advance())
    seconds = time.perf_counter() - started
    from sdhub.evidence.samples import save_png

    save_png(output, sample.image)
    return {
        "output": str(output),
        "prompt": prompt,
        "seed": seed,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "width": sampling.width,
        "height": sampling.height,
        "seconds": round(seconds, 3),
        **backend.described(pipe),
    }
