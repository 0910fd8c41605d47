"""Examples in help texts, set the same way everywhere."""

from __future__ import annotations


def examples(*lines: str) -> str:
    """An epilog that shows the lines as commands, one a line."""
    return "Examples:\n\n" + "\n\n".join(f"`{line}`" for line in lines)
