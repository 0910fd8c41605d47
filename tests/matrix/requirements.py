"""What pyproject.toml allows: the requirements of extras, as they stand there and at their lower bounds."""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).parents[2]
PARTS = re.compile(r"([A-Za-z0-9._-]+)(\[([a-z,]+)\])?(.*)")
BOUND = re.compile(r">=([0-9.]+)")


def requirements(*extras: str) -> list[str]:
    """Of the base installation and of these extras, with the extras that they take along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, left = list(project["dependencies"]), list(extras)
    while left:
        for text in project["optional-dependencies"][left.pop()]:
            name, _, inner, _ = PARTS.fullmatch(text).groups()
            if name == "sdhub":
                left += inner.split(",")
            else:
                found.append(text)
    return sorted(set(found))


def lowest(*extras: str) -> list[str]:
    """The same, each at its lower bound; other bounds, such as `numpy<2.4`, stay beside them."""
    found = []
    for text in requirements(*extras):
        name, bound = PARTS.fullmatch(text)[1], BOUND.search(text)
        found.append(f"{name}=={bound[1]}.*" if bound else text)
    return found
