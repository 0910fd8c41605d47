"""From what the user typed to a resolved checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdhub.checkpoint import inspect as inspection
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.source import neighbour, parse_source
from sdhub.core.errors import HubError, SourceError
from sdhub.core.hub import Hub


def resolve(
    source: str,
    loras: Sequence[str] | None = None,
    config: str | None = None,
    controlnets: Sequence[str] | None = None,
    safety_checker: bool = False,
    *,
    hub: Hub | None = None,
) -> Checkpoint:
    """The checkpoint that a source names on `hub` (None: `HF_ENDPOINT` or huggingface.co). Raises SdhubError."""
    parsed = parse_source(source, loras or (), config, controlnets or (), safety_checker)
    try:
        return inspection.inspect(parsed, hub)
    except (HubError, SourceError) as error:
        named = [parsed.ref, parsed.config or "", *(each.ref for each in parsed.loras), *parsed.controlnets]
        error.hint = neighbour(error.message, filter(None, named)) or error.hint
        raise


def inspect(
    source: str | Path,
    *,
    loras: Sequence[str] = (),
    config: str | None = None,
    controlnets: Sequence[str] = (),
    safety_checker: bool = False,
) -> Checkpoint:
    """What a source is, from its configs and the headers of its weights alone.

    `source` is a Hub id (`org/name`, with `@revision` where wanted), a folder, a `.safetensors` file, or "demo";
    `loras` (`ID_OR_FILE[:scale]`) are to be fused, `config` names the configs of a single file, `controlnets` go
    along. Raises SourceError, UnsupportedError, UnsafeError, HubError.
    """
    return resolve(str(source), loras, config, controlnets, safety_checker)


def checkpoint_of(source: str | Path | Checkpoint) -> Checkpoint:
    """A checkpoint as it is, or the one that a source names. Raises what `inspect` raises."""
    return source if isinstance(source, Checkpoint) else inspect(source)
