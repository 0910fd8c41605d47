"""Any text on one line."""

from __future__ import annotations

import unicodedata
from typing import Any

LIMIT = 300
_KEPT = {"\u200d"}  # the zero-width joiner of emoji


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
