"""The commands of a guide."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def commands(guide: str) -> list[list[str]]:
    """Each line of the `sh` blocks, as words without the program's name."""
    text = (DOCS / guide).read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    words = [shlex.split(line) for line in lines]
    assert words
    assert all(each[0] == "sdhub" for each in words)
    return [each[1:] for each in words]
