"""Putting strangers' text into Markdown so that it stays text.

Everything that a Jinja template prints goes through `text`, unless it is `Markdown` already.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any
from urllib.parse import quote, urlsplit

_INLINE = re.compile(r"([\\`*_\[\]<>|~$&])")
_LEADING = re.compile(r"^(\d*)([#\-+=.)])(?=[ #\-=]|$)")  # what starts a heading, list or underline
_LINKED = re.compile(r"(://|@|\bwww(?=\.))", re.IGNORECASE)
LIMIT = 300
_KEPT = {"\u200d"}  # the zero-width joiner of emoji
_JOINER = "\u2060"  # a word joiner: invisible, and ends what a renderer takes for an address


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def text(value: Any) -> Markdown:
    """Any text as prose: no markup of its own, no address that a renderer would turn into a link."""
    if isinstance(value, Markdown):
        return value
    escaped = _INLINE.sub(r"\\\1", _LINKED.sub(rf"\1{_JOINER}", plain(value)))
    return Markdown(_LEADING.sub(r"\1\\\2", escaped))


def code(value: Any) -> Markdown:
    """Any text as a code span, outside of tables."""
    content = plain(value) or "(empty)"
    ticks = "`" * (_longest_run(content) + 1)
    pad = " " if content.startswith("`") or content.endswith("`") else ""
    return Markdown(f"{ticks}{pad}{content}{pad}{ticks}")


def cell(value: Any) -> Markdown:
    """Any text as a code span in a table, where a pipe would end the cell."""
    return Markdown(code(value).replace("|", r"\|"))


def link(label: Markdown, url: str | None) -> Markdown:
    """A link to an http(s) address or to a file of the repository; the label alone where it is neither."""
    target = safe_url(url)
    return Markdown(f"[{label}]({target})") if target else label


def safe_url(url: str | None) -> str | None:
    """The address with everything escaped that could end a link; None unless http, https or a relative path."""
    if not url or len(url) > 1000 or plain(url, 1000) != url:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    relative = not parts.scheme and not parts.netloc and not url.startswith(("/", "\\"))
    if not relative and not (parts.scheme in {"http", "https"} and parts.netloc):
        return None
    return quote(url, safe="/:?#@!&=+,;%~-._")


def fence(content: str, language: str = "") -> Markdown:
    """A fenced code block that its content cannot end; control and format characters are left out."""
    content = "".join(char if char in "\n\t" else printable(char) for char in content)
    ticks = "`" * max(3, _longest_run(content) + 1)
    return Markdown(f"{ticks}{language}\n{content.rstrip(chr(10))}\n{ticks}")


def plain(value: Any, limit: int = LIMIT) -> str:
    """One line of at most `limit` characters without control, format and bidirectional characters."""
    kept = [printable(char) for char in str(value)[: 4 * limit]]
    line = " ".join("".join(kept).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def printable(char: str) -> str:
    """A character as it may be shown: nothing for what is invisible, a space for what breaks lines."""
    category = unicodedata.category(char)
    if char.isspace() or category in {"Cc", "Zl", "Zp"}:
        return " "
    if category == "Cs":
        return "\ufffd"
    return "" if category == "Cf" and char not in _KEPT else char


def _longest_run(content: str) -> int:
    return max((len(run) for run in re.findall(r"`+", content)), default=0)
