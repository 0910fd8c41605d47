"""What is drawn for evidence: prompts, seeds, steps; and one way to draw it with any diffusers-style pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.core.device import synchronize
from sdhub.core.documents import parse_object, shown
from sdhub.core.errors import EvidenceError, SourceError, UsageError
from sdhub.core.foreign import translate_errors
from sdhub.evidence.given import given, kind_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_PROMPTS = 64
MAX_TEXT = 1000
MAX_SEED = 2**63 - 1
MAX_STEPS, MAX_GUIDANCE, MAX_SIDE = 1000, 100, 4096
MAX_EVIDENCE = 16 * 2**20
AGAIN = "get the variant again, or ask who published it"


@dataclass(frozen=True)
class Prompt:
    """A prompt with the seed of its initial latents."""

    text: str
    seed: int


@dataclass(frozen=True)
class Sampling:
    """How base and variant are sampled alike."""

    prompts: tuple[Prompt, ...]
    """One picture is drawn of each."""
    steps: int
    """Denoising steps of a picture."""
    guidance: float
    """Scale of classifier-free guidance; up to 1 is none."""
    width: int
    """In pixels."""
    height: int
    """In pixels."""

    def document(self) -> Mapping[str, Any]:
        """The JSON form, part of the key of every measured stage."""
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """One picture: `image` float32 (H, W, 3) in [0, 1], `latents` float32 (C, h, w) before decoding."""

    image: npt.NDArray[np.float32]
    latents: npt.NDArray[np.float32]


def parse_sampling(document: Mapping[str, Any]) -> Sampling:
    """What `Sampling.document` gave."""
    prompts = tuple(Prompt(str(each["text"]), int(each["seed"])) for each in document["prompts"])
    return Sampling(
        prompts=prompts,
        steps=int(document["steps"]),
        guidance=float(document["guidance"]),
        width=int(document["width"]),
        height=int(document["height"]),
    )


def evidence_sampling(folder: Path) -> Sampling | None:
    """How the evidence of a stranger's variant says that it was drawn; None where there is none.

    Raises SourceError where it is broken, or beyond the bounds of what is drawn.
    """
    document = _evidence(folder)
    return None if document is None else _sampling(document, "sampling")


def usual_sampling(folder: Path) -> Sampling | None:
    """How users draw with it, by its evidence, which may be drawn in fewer steps; else as `evidence_sampling`."""
    document = _evidence(folder)
    if document is None or not isinstance(document.get("usual"), dict):
        return None if document is None else _sampling(document, "sampling")
    prompts = asdict(_sampling(document, "sampling"))["prompts"]
    return _sampling({"usual": {**document["usual"], "prompts": prompts}}, "usual")


def _evidence(folder: Path) -> Mapping[str, Any] | None:
    path = folder / "evidence" / "evidence.json"
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_EVIDENCE:
        raise SourceError(f"evidence.json has more than {MAX_EVIDENCE} bytes", hint=AGAIN)
    return parse_object(path.read_bytes(), "evidence.json")


def _sampling(document: Mapping[str, Any], name: str) -> Sampling:
    try:
        sampling = parse_sampling(document[name])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SourceError(f"evidence.json does not say how it was drawn ({shown(error)})", hint=AGAIN) from None
    return bounded(sampling, "evidence.json")


def bounded(sampling: Sampling, where: str) -> Sampling:
    """`sampling`, where it is nothing that would never end. Raises SourceError that names `where`."""
    for what, value, least, most in (
        ("prompts", len(sampling.prompts), 1, MAX_PROMPTS),
        (
            "characters in a prompt",
            max(map(len, (each.text for each in sampling.prompts)), default=0),
            0,
            MAX_TEXT,
        ),
        ("as seed", max((abs(each.seed) for each in sampling.prompts), default=0), 0, MAX_SEED),
        ("steps", sampling.steps, 1, MAX_STEPS),
        ("as guidance", sampling.guidance, 0, MAX_GUIDANCE),
        ("pixels of width", sampling.width, 8, MAX_SIDE),
        ("pixels of height", sampling.height, 8, MAX_SIDE),
    ):
        if not least <= value <= most:
            said = f"{value:g}" if abs(value) < 1e9 else "far more"
            raise SourceError(f"{where} asks for {said} {what}; from {least} to {most} are drawn", hint=AGAIN)
    return sampling


def draw(pipe: Any, prompt: Prompt, sampling: Sampling, on_step: Callable[[int], None] | None = None) -> Sample:
    """One picture by any pipeline of diffusers' calling convention.

    The initial latents are drawn in float32 by a CPU generator of the prompt's seed, whatever the pipeline
    computes in, so that any two pipelines of one checkpoint start alike; a float32 pipeline that is given just
    such a generator draws the same. `on_step` is called after every step with its number, from 0.

    Raises EvidenceError where the pipeline fails, and where the picture is not finite or was blacked out by a
    safety checker.
    """
    import numpy as np
    import torch

    drawn, caught = _called(pipe, prompt, sampling, "np", on_step)
    if any(getattr(drawn, "nsfw_content_detected", None) or ()):
        raise EvidenceError(
            f"the safety checker blacked out {prompt.text[:60]!r}", hint="draw other prompts, see --prompts"
        )
    image = np.asarray(drawn.images[0], dtype=np.float32)
    latents = torch.as_tensor(caught)[0].to("cpu", torch.float32).numpy()
    if not (np.isfinite(image).all() and np.isfinite(latents).all()):
        raise EvidenceError(f"{prompt.text[:60]!r} is drawn as infinite or undefined numbers")
    return Sample(image, latents)


def draw_latents(
    pipe: Any, prompt: Prompt, sampling: Sampling, on_step: Callable[[int], None] | None = None
) -> None:
    """Sample as `draw` does, and decode nothing. Raises EvidenceError where the pipeline fails."""
    _called(pipe, prompt, sampling, "latent", on_step)


def _called(
    pipe: Any, prompt: Prompt, sampling: Sampling, output: str, on_step: Callable[[int], None] | None
) -> tuple[Any, Any]:
    """What the pipeline gives, and the latents of its last step."""
    import torch

    generator = torch.Generator("cpu").manual_seed(prompt.seed)
    caught: dict[str, Any] = {}

    def catch(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        caught["latents"] = tensors["latents"]
        if on_step:
            if torch.is_tensor(tensors["latents"]):
                synchronize(tensors["latents"].device)  # the step has only been queued so far, and may be timed
            on_step(step)
        return tensors

    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad(), translate_errors(f"{shown(prompt.text, 60)!r} could not be drawn", EvidenceError):
        drawn = pipe(
            prompt.text,
            guidance_scale=sampling.guidance,
            generator=generator,
            **_noise(pipe, sampling, generator),
            **given(pipe, sampling.steps, sampling.width, sampling.height),
            output_type=output,
            callback_on_step_end=catch,
        )
    return drawn, caught["latents"]


def _noise(pipe: Any, sampling: Sampling, generator: Any) -> Mapping[str, Any]:
    """Standard normal noise (1, C, h, w), which the pipeline scales by its scheduler's `init_noise_sigma`.

    Nothing for pipelines that start from a picture, and for transformers in float32: they draw from the generator
    themselves. In half precision a transformer's are drawn by its pipeline, but in float32.
    """
    import torch

    unet, transformer = getattr(pipe, "unet", None), getattr(pipe, "transformer", None)
    if kind_of(type(pipe).__name__) == "picture":
        return {}
    # No pipeline gives a denoiser in half precision float32 latents: they must come in its own type.
    dtype = getattr(unet or transformer, "dtype", None)
    half = dtype in (torch.float16, torch.bfloat16)
    if unet is None:
        if not half or transformer is None:
            return {"latents": None}
        channels = transformer.config.in_channels // (4 if "Flux" in type(pipe).__name__ else 1)
        size, plain = (sampling.height, sampling.width), (torch.float32, torch.device("cpu"))
        drawn = pipe.prepare_latents(1, channels, *size, *plain, generator)
        return {"latents": drawn[0] if isinstance(drawn, tuple) else drawn}  # Flux's come with places of tokens
    height, width = (side // pipe.vae_scale_factor for side in (sampling.height, sampling.width))
    noise = torch.randn((1, pipe.vae.config.latent_channels, height, width), generator=generator)
    return {"latents": noise.to(dtype) if half else noise}


def load_prompts(path: Path) -> tuple[Prompt, ...]:
    """Prompts from a JSON list of texts or of `{"text", "seed"}`; a text alone gets its number as seed.

    Raises UsageError naming the entry.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from None
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_PROMPTS:
        raise UsageError(f"{path}: a JSON list of 1 to {MAX_PROMPTS} prompts is wanted")
    return tuple(_prompt(entry, number, path) for number, entry in enumerate(entries, start=1))


def general_prompts() -> tuple[Prompt, ...]:
    """The fixed set that is drawn where nothing else is said."""
    return load_prompts(Path(__file__).with_name("prompts.json"))


def _prompt(entry: Any, number: int, path: Path) -> Prompt:
    fields = entry if isinstance(entry, dict) else {"text": entry}
    if unknown := sorted(set(fields) - {"text", "seed"}):
        raise UsageError(f"{path}: prompt {number} has an unknown field {unknown[0]!r}; known are text and seed")
    text, seed = fields.get("text"), fields.get("seed", number)
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
        raise UsageError(f"{path}: prompt {number} is not a text of 1 to {MAX_TEXT} characters")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UsageError(f"{path}: prompt {number} has half of a surrogate pair, which is no character")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UsageError(f"{path}: the seed of prompt {number} is not an integer from 0 to 2^63 - 1")
    return Prompt(text, seed)
