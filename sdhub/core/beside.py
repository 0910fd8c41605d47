"""Folders that stand beside the package in a checkout, and inside it where it was installed from a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def folder_beside(name: str) -> Path:
    """`spaces` or `templates`."""
    return next(path for path in (PACKAGE / f"_{name}", PACKAGE.parent / name) if path.is_dir())
