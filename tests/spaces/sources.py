"""The modules of a Space, which are no package: imported as the app imports them."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

SPACES = Path(__file__).parents[2] / "spaces"


def space_module(space: str, name: str) -> ModuleType:
    """`name` of the Space's folder; modules of the same name of another Space are put aside."""
    folder = str(SPACES / space)
    common = str(SPACES / "common")
    own = {path.stem for path in Path(folder).glob("*.py")}
    for known in own & set(sys.modules):
        if not str(getattr(sys.modules[known], "__file__", "")).startswith(folder):
            del sys.modules[known]
    sys.path[:0] = [folder, common]
    try:
        return import_module(name)
    finally:
        sys.path.remove(folder)
        sys.path.remove(common)
