"""The built-in checkpoint: a real, small text-to-image pipeline that draws emoji."""

from __future__ import annotations

from pathlib import Path


def emoji_sd() -> Path:
    """The folder of `emoji-sd`, in diffusers' layout; sources named `demo` mean it."""
    return Path(__file__).parent / "emoji-sd"
