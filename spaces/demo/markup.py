"""The parts of the page that Gradio has no component for, as HTML. Every value is escaped here."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from catalog import Pair, Variant, size_words

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELATED_BELOW = 256  # pixels: smaller pictures are shown with their pixels
NOTHING_YET = "Your picture will appear here."


def header(variants: list[Variant]) -> str:
    """Title and what this page is."""
    sources = sorted({variant.source for variant in variants})
    return (
        f"<header class='top'><h1>Try {escape(', '.join(sources)[:120])} on a device</h1>"
        "<p>Small, fast variants of a diffusion model, made and measured with sdhub. "
        "Pictures are drawn here, on this Space’s hardware.</p>"
        "</header>"
    )


def picture(image: Image | None, alt: str, *, busy: bool = False, step: int = 0, steps: int = 0) -> str:
    """The picture, or its place; with a bar while it is drawn."""
    bar = ""
    if busy:
        value = f" value='{step}' max='{steps}'" if steps else ""
        bar = f"<progress aria-label='Progress of the drawing'{value}></progress>"
    if image is None:
        inside = f"<p>{escape(alt or NOTHING_YET)}</p>"
    else:
        inside = f"<img src='{data_uri(image)}' alt='{escape(alt, quote=True)}'{_pixelated(image.width)}>"
    return f"<figure class='picture{' busy' if busy else ''}'>{inside}{bar}</figure>"


def status(text: str, kind: str = "plain") -> str:
    """One sentence that screen readers say."""
    role = "alert" if kind == "bad" else "status"
    return f"<p class='status {kind}' role='{role}'>{escape(text)}</p>"


def facts(variant: Variant) -> str:
    """Figures of a variant, from its evidence."""
    rows = []
    if variant.bytes:
        base = f" of {size_words(variant.base_bytes)}" if variant.base_bytes else ""
        rows.append(("Size", f"{size_words(variant.bytes)}{base}"))
    if variant.speed:
        rows.append(("Speed", f"{variant.speed:.2f}× the base’s where it was made"))
    if variant.ssim is not None:
        rows.append(("Likeness", f"SSIM {variant.ssim:.3f} to the base’s pictures"))
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    repo = escape(variant.repo)
    return f"<dl class='facts'>{items}<dt>Repository</dt><dd><bdi>{repo}</bdi></dd></dl>"


def comparison(variant: Variant) -> str:
    """Base and variant side by side, from the published evidence."""
    if not variant.pairs:
        return "<p class='soft'>This variant was published without pictures to compare.</p>"
    return f"<div class='pairs'>{''.join(_pair(pair) for pair in variant.pairs)}</div>"


def _pair(pair: Pair) -> str:
    prompt = escape(pair.prompt)
    figure = f"<span class='soft'> PSNR {pair.psnr_db:.1f} dB</span>" if pair.psnr_db is not None else ""
    pictures = "".join(
        f"<div><img src='{file_uri(path)}' alt='{prompt}, drawn by the {side}'{_pixelated(_width(path))}>"
        f"<span>{side}</span></div>"
        for side, path in (("base", pair.base), ("variant", pair.variant))
    )
    caption = f"<figcaption>{prompt}{figure}</figcaption>"
    return f"<figure class='pair'><div class='both'>{pictures}</div>{caption}</figure>"


def drawn(image: Image, words: str) -> str:
    """A picture of the session's gallery."""
    words = escape(words, quote=True)
    return f"<li><img src='{data_uri(image)}' alt='{words}' title='{words}'{_pixelated(image.width)}></li>"


def gallery(entries: list[str]) -> str:
    """What was drawn in this session, newest first, from `drawn`."""
    return f"<h2 class='small'>Drawn in this session</h2><ul class='drawn'>{''.join(entries)}</ul>"


def data_uri(image: Image) -> str:
    """A picture as an address."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def file_uri(path: Path) -> str:
    """A PNG file, drawn anew, as an address. It comes from a repository: only its pixels go on."""
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as image:
        image.thumbnail((384, 384))
        return data_uri(image)


def _width(path: Path) -> int:
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as image:
        return image.width


def _pixelated(width: int) -> str:
    return " class='pixels'" if width < PIXELATED_BELOW else ""
