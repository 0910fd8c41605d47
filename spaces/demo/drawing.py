"""Drawing with a variant: one picture at a time, told step by step, and ended when asked."""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog import SIDES, Variant
from downloads import clear_downloads
from line import Line

from sdhub.core.errors import SdhubError
from sdhub.core.work import home

if TYPE_CHECKING:
    from PIL.Image import Image

QUEUE = 16
SECONDS = 300.0  # of a drawing, unless the Space's variable DRAW_SECONDS says more or less
LOADING = 900.0  # seconds of downloading and opening a variant, unless its LOAD_SECONDS does
KEPT_GB = 20.0  # of downloaded variants, unless its CACHE_GB does
MAX_PROMPT, MAX_STEPS, MAX_GUIDANCE, MAX_SEED = 300, 50, 20.0, 2**32 - 1
LOOK_SECONDS = 0.5
PREVIEW_SHARE = 0.25  # of the time that a step takes

FETCH = """
import sys
from huggingface_hub import snapshot_download
repo, commit, cache, *unneeded = sys.argv[1:]
print(snapshot_download(repo, revision=commit, cache_dir=cache, ignore_patterns=unneeded))
"""

logger = logging.getLogger(__name__)


class Refusal(ValueError):
    """What is wrong with a wish, in one sentence for its author."""


class TooLong(Exception):
    """Loading or drawing took more than its time; the words are for the visitor."""


class Cancelled(Exception):
    """Nobody waits for the picture any more."""


@dataclass(frozen=True)
class Wish:
    """What to draw, within bounds."""

    prompt: str
    negative: str
    seed: int
    steps: int
    guidance: float
    width: int
    height: int


def wish(prompt: Any, negative: Any, seed: Any, steps: Any, guidance: Any, size: Any, variant: Variant) -> Wish:
    """A wish from what a stranger sent. Raises Refusal."""
    text = _text(prompt)
    if not text:
        raise Refusal("Say what to draw first.")
    try:
        width, height = (int(side) for side in str(size).split("×"))
        number, count, scale = int(seed), int(steps), float(guidance)
    except (TypeError, ValueError, OverflowError):
        raise Refusal("One of the settings is no number.") from None
    if (width, height) not in variant.sizes or not all(SIDES[0] <= side <= SIDES[1] for side in (width, height)):
        raise Refusal("This variant does not draw that size.")
    if not 1 <= count <= MAX_STEPS:
        raise Refusal(f"Steps go from 1 to {MAX_STEPS}.")
    if not 0 <= scale <= MAX_GUIDANCE:
        raise Refusal(f"Guidance goes from 0 to {MAX_GUIDANCE:g}.")
    if not 0 <= number <= MAX_SEED:
        raise Refusal(f"Seeds go from 0 to {MAX_SEED}.")
    return Wish(text, _text(negative), number, count, scale, width, height)


def _text(value: Any) -> str:
    """Printable characters in one line, of bounded length. Raises Refusal for longer ones."""
    text = "".join(char if char.isprintable() else " " for char in value) if isinstance(value, str) else ""
    text = " ".join(text.split())
    if len(text) > MAX_PROMPT:
        raise Refusal(f"A prompt has at most {MAX_PROMPT} characters.")
    return text


@dataclass(frozen=True)
class Event:
    """What happens: `kind` is waiting, loading, step, done, cancelled or failed."""

    kind: str
    step: int = 0
    image: Image | None = None
    seconds: float = 0.0
    message: str = ""


class Studio:
    """Holds one variant in memory, and draws for one visitor at a time, for at most `seconds`; others wait.

    Where nothing happens for `loading` seconds the visitor is let go: no turn lasts for ever.
    """

    def __init__(self) -> None:
        self.line = Line("picture")
        self.seconds = above_zero("DRAW_SECONDS", SECONDS)
        self.loading = above_zero("LOAD_SECONDS", LOADING)
        self._busy = threading.Lock()
        self._loaded: tuple[str, Any] | None = None

    def holds(self, variant: Variant) -> bool:
        """Whether the variant is in memory."""
        return self._loaded is not None and self._loaded[0] == variant.repo

    def draw(self, variant: Variant, wanted: Wish, stop: threading.Event) -> Iterator[Event]:
        """Events of a drawing, in its turn. Setting `stop`, or leaving the iteration, ends it at the next step."""
        ticket = self.line.join(QUEUE)
        if ticket is None:
            yield Event("failed", message=f"{QUEUE} pictures wait already: come back later.")
            return
        try:
            place = 0
            while ahead := self.line.ahead(ticket):
                if stop.is_set():
                    yield Event("cancelled")
                    return
                if ahead != place:
                    place = ahead
                    waiting = f"Place {ahead} of {len(self.line) - 1} in the queue."
                    yield Event("waiting", message=waiting)
                self.line.wait(LOOK_SECONDS)
            yield from self._alone(variant, wanted, stop)
        finally:
            self.line.leave(ticket)

    def _alone(self, variant: Variant, wanted: Wish, stop: threading.Event) -> Iterator[Event]:
        events: queue.Queue[Event] = queue.Queue()
        thread = threading.Thread(target=self._work, args=(variant, wanted, stop, events), daemon=True)
        thread.start()
        try:
            while True:
                try:
                    event = events.get(timeout=self.loading)
                except queue.Empty:
                    event = Event("failed", message=f"Nothing came of it in {self.loading:g} s: come back later.")
                yield event
                if event.kind in {"done", "cancelled", "failed"}:
                    return
        finally:
            stop.set()

    def _work(self, variant: Variant, wanted: Wish, stop: threading.Event, events: queue.Queue[Event]) -> None:
        try:
            with self._busy:
                if stop.is_set():
                    raise Cancelled
                if not self.holds(variant):
                    events.put(Event("loading"))
                pipe = self._open(variant)
                started = time.perf_counter()
                image = _run(pipe, wanted, stop, events, started, self.seconds)
            events.put(Event("done", wanted.steps, image, time.perf_counter() - started))
        except Cancelled:
            events.put(Event("cancelled"))
        except TooLong as error:
            events.put(Event("failed", message=str(error)))
        except SdhubError as error:
            logger.error("%s is not drawn with: %s", variant.repo, error.message)
            events.put(Event("failed", message="This variant is not sound. The log of this Space says why."))
        except Exception:
            logger.exception("%s could not draw", variant.repo)
            events.put(Event("failed", message="The variant could not draw this. The log of this Space says why."))

    def _open(self, variant: Variant) -> Any:
        if not self.holds(variant):
            self._loaded = None  # memory is short: the old one goes first
            self._loaded = (variant.repo, load(variant))
        assert self._loaded is not None
        return self._loaded[1]


def load(variant: Variant) -> Any:
    """The pipeline of a variant at its commit, vetted. Raises SdhubError."""
    return open_vetted(downloaded(variant))


def downloaded(variant: Variant) -> Path:
    """The variant's folder in a cache of weights alone, of which the least recently used go.

    Raises TooLong: a process of its own downloads, since a thread could not be ended.
    """
    cache, most = home() / "variants", above_zero("LOAD_SECONDS", LOADING)
    words = [variant.repo, variant.commit, str(cache), "*.zip", "evidence/*", "compiled/*"]
    try:
        done = subprocess.run(  # noqa: S603 — our own program
            [sys.executable, "-c", FETCH, *words], timeout=most, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        raise TooLong(f"The variant was not downloaded in {most:g} s: come back later.") from None
    if done.returncode:
        raise RuntimeError(f"{variant.repo} was not downloaded: {done.stderr[-2000:]}")
    clear_downloads(int(above_zero("CACHE_GB", KEPT_GB) * 1e9), cache, keep=[variant.commit])
    return Path(done.stdout.splitlines()[-1])


def above_zero(name: str, usual: float) -> float:
    """A variable of the Space; `usual` where it is none, or no number above zero."""
    try:
        value = float(os.environ.get(name) or usual)
    except ValueError:
        value = 0.0
    if 0 < value < 1e9:
        return value
    logger.warning("%s is no number above zero: %g is taken", name, usual)
    return usual


def open_vetted(folder: Path) -> Any:
    """The pipeline of a downloaded variant, from sdhub's view of it: no loader sees the stranger's folder.

    Raises SdhubError for a folder that is no sound variant.
    """
    from sdhub.backends.variant.view import opened
    from sdhub.workflow.variants import backend_of_folder

    backend = backend_of_folder(folder)
    return opened(folder, backend.layout(), backend.load_native)


def _run(
    pipe: Any, wanted: Wish, stop: threading.Event, events: queue.Queue[Event], started: float, most: float
) -> Image:
    import torch

    previews = Previews(pipe)

    def on_step(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if stop.is_set():
            raise Cancelled
        last = step + 1 >= wanted.steps
        if not last and time.perf_counter() - started > most:
            raise TooLong(f"It took longer than {most:g} s, and was ended: fewer steps or a smaller size may do.")
        image = None if last else previews.of(tensors["latents"])
        events.put(Event("step", step + 1, image, time.perf_counter() - started))
        return tensors

    if stop.is_set():
        raise Cancelled
    pipe.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"negative_prompt": wanted.negative} if wanted.negative else {}
    drawn = pipe(
        wanted.prompt,
        num_inference_steps=wanted.steps,
        guidance_scale=wanted.guidance,
        width=wanted.width,
        height=wanted.height,
        generator=torch.Generator().manual_seed(wanted.seed),
        callback_on_step_end=on_step,
        **settings,
    )
    image: Image = drawn.images[0]
    return image


class Previews:
    """Pictures of unfinished latents, as many as take a fourth of the time that the steps take."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._cost = 0.0  # of the last one, in seconds
        self._last = time.perf_counter()

    def of(self, latents: Any) -> Image | None:
        """The picture, or None where it is too early for another one or the pipeline has no plain decoder."""
        now = time.perf_counter()
        if now - self._last < self._cost / PREVIEW_SHARE:
            return None
        try:
            image = self._decode(latents)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            self._cost = float("inf")
            return None
        self._last = time.perf_counter()
        self._cost = self._last - now
        return image

    def _decode(self, latents: Any) -> Image:
        import torch

        vae = self._pipe.vae
        with torch.no_grad():
            pixels = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        images: list[Image] = self._pipe.image_processor.postprocess(torch.as_tensor(pixels), output_type="pil")
        return images[0]
