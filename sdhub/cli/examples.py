"""Examples in help texts, set the same way everywhere."""

from __future__ import annotations


def examples(*lines: str) -> str:
    """An epilog that shows the lines as commands, one a line."""
    shown = [line.replace("[", "\\[") for line in lines]
    return "Examples:\n\n" + "\n\n".join(f"  [bold]{line}[/bold]" for line in shown)
