"""The parts of the page that Gradio has no component for, as HTML. Every value is escaped here."""

from __future__ import annotations

from html import escape
from typing import Any
from urllib.parse import urlsplit

from looking import Choice, Look


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def minutes(count: float) -> str:
    """A forecast for people."""
    return "< 1 min" if count < 1 else f"{count:.0f} min"


HEADER = (
    "<header class='top'><h1>Publish device-ready variants</h1><p>Name a diffusion checkpoint, see what it can "
    "become, and publish measured variants into your own namespace.</p></header>"
)


def status(text: str, kind: str = "plain") -> str:
    """One sentence that screen readers say."""
    return f"<p class='status {kind}' role='{'alert' if kind == 'bad' else 'status'}'>{escape(text)}</p>"


def found(look: Look) -> str:
    """What a checkpoint is, and a table of its variants."""
    checkpoint = look.checkpoint
    license = checkpoint.license.name or checkpoint.license.id if checkpoint.license else "not stated"
    facts = {
        "Checkpoint": checkpoint.id,
        "Commit": (checkpoint.sha or "")[:12],
        "Family": checkpoint.family.title,
        "Weights": f"{size(checkpoint.bytes)} in {len(checkpoint.files)} files",
        "Licence": str(license),
        "Access": "private" if checkpoint.private else "gated" if checkpoint.gated else "public",
    }
    items = "".join(f"<dt>{name}</dt><dd><bdi>{escape(value)}</bdi></dd>" for name, value in facts.items())
    return f"<dl class='facts'>{items}</dl>{_table(look.choices)}"


def _table(choices: tuple[Choice, ...]) -> str:
    rows = "".join(_row(choice) for choice in choices)
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("Variant", "Size", "Memory", "Time"))
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _row(choice: Choice) -> str:
    name = f"<th scope='row'>{escape(choice.name)}</th>"
    if choice.reason:
        return f"<tr class='no'>{name}<td colspan='3'>{escape(choice.reason)}</td></tr>"
    cells = (size(choice.bytes), size(choice.peak_bytes), escape(minutes(choice.minutes)))
    return f"<tr>{name}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def log(lines: list[str], *, busy: bool) -> str:
    """What was done so far."""
    bar = "<progress aria-label='Publishing'></progress>" if busy else ""
    rows = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"{bar}<ol class='log'>{rows}</ol>" if lines or busy else ""


def results(document: dict[str, Any]) -> str:
    """What became of each variant, with its address."""
    rows = []
    for each in document.get("variants") or ():
        name, address = escape(str(each["name"])), each.get("pull_request") or each.get("url") or ""
        if each["status"] == "failed":
            rows.append(f"<li class='bad'>{name}: {escape(str(each.get('reason') or 'failed'))}</li>")
        elif urlsplit(address).scheme in {"http", "https"}:
            shown = escape(address, quote=True)
            words = escape(str(each["status"]))
            rows.append(f"<li>{name}, {words}: <a href='{shown}' target='_blank' rel='noopener'>{shown}</a></li>")
    return f"<ul class='results'>{''.join(rows)}</ul>"
