"""From what the user typed to a resolved checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.source import parse_source
from sdhub.core.endpoint import endpoint


def resolve(
    source: str,
    loras: Sequence[str] | None = None,
    config: str | None = None,
    controlnets: Sequence[str] | None = None,
    safety_checker: bool = False,
) -> Checkpoint:
    """The checkpoint that a source names, seen through `HF_ENDPOINT` or huggingface.co. Raises SdhubError."""
    parsed = parse_source(source, loras or (), config, controlnets or (), safety_checker)
    if parsed.kind == "folder" and not parsed.loras and not parsed.controlnets:
        return inspect(parsed)
    hub = endpoint(None)
    return inspect(parsed, endpoint=hub.url, token=hub.token)
