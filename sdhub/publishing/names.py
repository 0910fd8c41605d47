"""Names of repositories on the Hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from sdhub.core.errors import UsageError

MAX_LENGTH = 96
_SEGMENT = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?")
_FIELD = re.compile(r"\{([^{}]*)\}")


def repository_name(template: str, *, model: str, treatment: str) -> str:
    """A repository's name, such as `emoji-sd-openvino-int8`, from a template such as
    `{model}-openvino-{treatment}`.

    Follows the Hub's rules (huggingface_hub's `validate_repo_id`): letters, digits, `-`, `_`, `.`, none of
    them doubled, at most 96 characters. A model name that is too long is cut, and told apart by a hash.
    Raises UsageError for a template with unknown fields, or where nothing is left of the name.
    """
    parts = {"model": _clean(model), "treatment": _clean(treatment)}
    name = _fill(template, parts)
    if len(name) > MAX_LENGTH:
        mark = hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        room = max(1, len(parts["model"]) - (len(name) - MAX_LENGTH) - len(mark) - 1)
        name = _fill(template, {**parts, "model": _clean(f"{parts['model'][:room]}-{mark}")})
    if not name or len(name) > MAX_LENGTH:
        raise UsageError(f"the template {template[:120]!r} makes no repository name of {model[:80]!r}")
    return name


def repository_id(namespace: str, name: str) -> str:
    """`namespace/name`. Raises UsageError where the Hub would not take it."""
    repo_id = f"{namespace}/{name}"
    sound = _SEGMENT.fullmatch(namespace) and _SEGMENT.fullmatch(name) and len(name) <= MAX_LENGTH
    if not sound or "--" in repo_id or ".." in repo_id or repo_id.endswith(".git"):
        raise UsageError(
            f"{repo_id[:200]!r} is no repository name",
            hint="letters, digits, -, _ and . (neither doubled nor at the ends), at most 96",
        )
    return repo_id


def _fill(template: str, parts: Mapping[str, str]) -> str:
    unknown = [field for field in _FIELD.findall(template) if field not in parts]
    if unknown:
        raise UsageError(
            f"the template {template[:120]!r} has no field {unknown[0][:40]!r}", hint="use {model} and {treatment}"
        )
    return _clean(_FIELD.sub(lambda match: parts[match[1]], template))


def _clean(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    name = re.sub(r"-{2,}", "-", re.sub(r"\.{2,}", ".", name)).strip("-._")
    return re.sub(r"(\.git)+$", "", name, flags=re.IGNORECASE)
