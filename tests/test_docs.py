"""The Python of the guides runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in (DOCS / "compression.md",)
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_of_the_guides_runs(block: str) -> None:
    exec(compile(block, "guide", "exec"), {"__name__": "guide"})
