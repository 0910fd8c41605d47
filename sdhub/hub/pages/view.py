"""What pages say: sizes, times, addresses, snippets, and the templates they are filled into."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from sdhub.hub.api.files import IMAGES
from sdhub.hub.cards import texts
from sdhub.hub.store.repositories import Repo
from sdhub.hub.store.trees import Tree

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'self'; form-action 'self';"
        " base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

_UNITS = ("B", "kB", "MB", "GB", "TB")
_STEPS = ((60, "second"), (60, "minute"), (24, "hour"), (30, "day"), (12, "month"), (10**6, "year"))


def size_text(size: int) -> str:
    """Bytes in decimal units, as in `1.24 GB`."""
    amount, unit = float(size), 0
    while amount >= 999.5 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    digits = 0 if unit == 0 or amount >= 99.95 else 1 if amount >= 9.995 else 2
    return f"{amount:.{digits}f} {_UNITS[unit]}"


def ago(time: str) -> Markup:
    """A `<time>` element that says how long ago an ISO 8601 time was."""
    moment = datetime.fromisoformat(time.replace("Z", "+00:00"))
    amount, unit = max(0.0, (datetime.now(timezone.utc) - moment).total_seconds()), "second"
    for step, unit in _STEPS:  # noqa: B007 — the unit that fits is used below
        if amount < step:
            break
        amount /= step
    count = int(amount)
    words = "just now" if unit == "second" else f"{count} {unit}{'' if count == 1 else 's'} ago"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(time, f"{moment:%Y-%m-%d %H:%M} UTC", words)


def path_url(repo: Repo, word: str, revision: str, path: str = "") -> str:
    """The address of `tree`, `blob` or `resolve` pages of a path."""
    tail = f"/{quote(path)}" if path else ""
    return f"{repo.url_path}/{word}/{quote(revision, safe='')}{tail}"


def pictures(tree: Tree, limit: int) -> list[str]:
    """Paths of pictures in a tree: those near the top first."""
    found = [path for path in tree.files if path.rpartition(".")[2].lower() in IMAGES]
    return sorted(found, key=lambda path: (path.count("/"), path))[:limit]


@dataclass(frozen=True)
class Snippet:
    """Lines to copy, with a word on what they do."""

    title: str
    text: str


def snippets(base: str, repo: Repo, tree: Tree, data: dict[str, Any]) -> list[Snippet]:
    """How to use a repository from this Hub."""
    kind = "" if repo.type == "model" else f" --repo-type {repo.type}"
    found = [Snippet("Download", f"HF_ENDPOINT={base} hf download {repo.full_name}{kind}")]
    core_ml = any(".mlpackage/" in path for path in tree.files)  # which diffusers does not load: its card says how
    if repo.type == "model" and "model_index.json" in tree.files and not core_ml:
        tags = {tag.lower() for tag in texts(data.get("tags"))}
        openvino = "openvino" in tags or any(path.endswith("openvino_model.xml") for path in tree.files)
        library, pipeline = ("diffusers", "DiffusionPipeline")
        if openvino:
            library, pipeline = ("optimum.intel", "OVDiffusionPipeline")
        lines = [
            f"# start Python with: HF_ENDPOINT={base} python",
            f"from {library} import {pipeline}",
            "",
            f'pipeline = {pipeline}.from_pretrained("{repo.full_name}")',
            'pipeline("a red fox in the snow").images[0].save("fox.png")',
        ]
        found.insert(0, Snippet("Python", "\n".join(lines)))
    return found


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({"size": size_text, "ago": ago, "texts": texts})
    environment.globals.update({"path_url": path_url, "style_version": _style()[1]})
    return environment


def page(template: str, /, *, http_status: int = 200, **values: Any) -> HTMLResponse:
    """A page from a template."""
    return HTMLResponse(_environment().get_template(template).render(values), http_status, PAGE_HEADERS)


@lru_cache(maxsize=1)
def _style() -> tuple[bytes, str]:
    content = (TEMPLATES / "style.css").read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:12]


def style() -> bytes:
    """The style sheet."""
    return _style()[0]
