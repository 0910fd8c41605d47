"""The demo Space of published variants: its files, made from the Space's sources and the variants' cards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdhub.backends.base import Backend, backends
from sdhub.core.errors import UnsupportedError, UsageError
from sdhub.publishing.markdown import code, text
from sdhub.publishing.names import repository_id, repository_name
from sdhub.spaces.sources import space_files

GRADIO = "6.31.0"
CPU = "cpu-"  # how the names of hardware without a GPU begin
TITLE = 60


@dataclass(frozen=True)
class Shown:
    """A published variant that a Space shows: `source` is the base's id, `license` what its card says of it."""

    repo_id: str
    variant: str
    source: str
    private: bool = False
    license: Mapping[str, str] = field(default_factory=dict)

    @property
    def backend(self) -> Backend | None:
        """The backend that made it; None where it is not installed here."""
        return backends().get(self.variant.partition("-")[0])


def fit(variants: Sequence[Shown], hardware: str) -> list[Shown]:
    """Those whose backend draws on the hardware. Raises UnsupportedError where none does."""
    runs = {"any"} if hardware.startswith(CPU) else {"any", "gpu"}
    found = [each for each in variants if each.backend is not None and each.backend.spaces in runs]
    if not found:
        names = ", ".join(each.variant for each in variants)
        raise UnsupportedError(
            f"a Space on {hardware} runs no {names}",
            hint=_elsewhere(),
        )
    return found


def _elsewhere() -> str:
    names = {kind: [name for name, each in backends().items() if each.spaces == kind] for kind in ("any", "gpu")}
    return f"anywhere: {', '.join(names['any'])}; with --hardware t4-small or larger: {', '.join(names['gpu'])}"


def space_name(variants: Sequence[Shown]) -> str:
    """The usual place: `NAMESPACE/MODEL-demo`, beside the first variant."""
    first = variants[0]
    model = first.source.rpartition("/")[2]
    name = repository_name("{model}-{treatment}", model=model, treatment="demo")
    return repository_id(first.repo_id.partition("/")[0], name)


def demo_files(variants: Sequence[Shown]) -> dict[str, bytes]:
    """All files of the Space, by path."""
    if not variants:
        raise UsageError("there is no variant to show", hint="name a published variant's repository")
    files = space_files("demo")
    packages = {name for each in variants if each.backend for name in each.backend.space_packages}
    files["requirements.txt"] += "".join(f"{name}\n" for name in sorted(packages)).encode()
    document = {"variants": [each.repo_id for each in variants]}
    files["variants.json"] = (json.dumps(document, indent=2) + "\n").encode()
    files["README.md"] = readme(variants).encode()
    return files


def readme(variants: Sequence[Shown]) -> str:
    """The Space's card. The front matter is written by huggingface_hub alone."""
    from huggingface_hub import SpaceCardData

    first = variants[0]
    data: dict[str, Any] = {
        "title": f"Try {first.source.rpartition('/')[2]}"[:TITLE],
        "emoji": "🎨",
        "colorFrom": "yellow",
        "colorTo": "red",
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "app_file": "app.py",
        "python_version": "3.12",
        "models": [each.repo_id for each in variants],
        "tags": ["sdhub", "text-to-image", *sorted({each.backend.name for each in variants if each.backend})],
        **first.license,
    }
    listed = "\n".join(f"- {code(each.repo_id)}" for each in variants)
    front = SpaceCardData(**data).to_yaml(line_break="\n").strip()
    return (
        f"---\n{front}\n---\n\n# Try {text(first.source)}\n\nDraw with small, fast variants in the browser, "
        f"beside what the base draws. Deployed by sdhub, from:\n\n{listed}\n"
    )
