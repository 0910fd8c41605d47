"""What a checkpoint is and what it can become, from its headers alone."""

from __future__ import annotations

from dataclasses import dataclass

from limits import Limits

from sdhub.backends.base import backend_of, backends
from sdhub.checkpoint.checkpoint import Checkpoint, Source
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.source import parse_repository
from sdhub.core.errors import MissingExtraError, SdhubError, SourceError, UnsupportedError
from sdhub.core.hub import Hub
from sdhub.workflow.options import Options
from sdhub.workflow.plan import make_plan, possible

MAX_SOURCE = 200


@dataclass(frozen=True)
class Choice:
    """A variant: forecasts of what making it takes, or the reason why it cannot be had."""

    name: str
    reason: str | None
    bytes: int = 0
    peak_bytes: int = 0
    minutes: float = 0.0
    recipe: str = ""


@dataclass(frozen=True)
class Look:
    """A checkpoint of the Hub with its choices."""

    checkpoint: Checkpoint
    choices: tuple[Choice, ...]

    @property
    def source(self) -> str:
        """The checkpoint with its commit, as commands take it."""
        return f"{self.checkpoint.id}@{self.checkpoint.sha}"


def look(source: str, hub: Hub, limits: Limits) -> Look:
    """Look at a Hub id with the visitor's own token, or none. Raises SdhubError.

    No path is looked for: this machine's files are not the visitor's.
    """
    checkpoint = inspected(source, hub, limits)
    return Look(checkpoint, tuple(choice(checkpoint, str(row["name"]), limits) for row in possible(checkpoint)))


def inspected(source: str, hub: Hub, limits: Limits) -> Checkpoint:
    """A checkpoint of the Hub, not larger than this Space takes. Raises SdhubError."""
    text = source.strip()
    if not text or len(text) > MAX_SOURCE:
        raise SourceError("a checkpoint is named as org/name", hint="paste its id, or its address on the Hub")
    checkpoint = inspect(Source("hub", *parse_repository(text)), hub)
    require_size(checkpoint, limits)
    return checkpoint


def require_size(checkpoint: Checkpoint, limits: Limits) -> None:
    """Raises UnsupportedError for more weights than this Space takes."""
    if checkpoint.bytes > limits.source:
        raise UnsupportedError(
            f"{checkpoint.id} has {checkpoint.bytes / 1e9:.1f} GB of weights; this Space takes up to "
            f"{limits.source / 1e9:.0f} GB",
            hint="publish it from a machine of yours: sdhub publish",
        )


def usual() -> set[str]:
    """The variants that are made where none is asked for."""
    return {backend.usual for backend in backends().values()}


def choice(checkpoint: Checkpoint, name: str, limits: Limits) -> Choice:
    """A variant of a checkpoint, with the reason where this Space cannot make it."""
    try:
        backend_of(name).versions()
    except MissingExtraError:
        return Choice(name, "this Space has not the libraries to make it")
    try:
        plan = make_plan(checkpoint, Options(namespace="me", variants=(name,)))
    except SdhubError as error:
        return Choice(name, error.message.partition(f" cannot become {name}: ")[2] or error.message)
    (planned,) = plan.variants
    minutes, peak = plan.minutes(planned), plan.peak_bytes(planned)
    if peak > limits.memory:
        needs, has = (f"{count / 1e9:.0f} GB" for count in (peak, limits.memory))
        return Choice(name, f"making it needs {needs} of memory, and this Space has {has}")
    return Choice(name, None, planned.forecast.bytes, peak, minutes, planned.recipe.sha256)
