"""The wheel, as the action and users install it, holds all that a checkout has."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT = {"__pycache__", ".DS_Store"}


def files_of(folder: str) -> set[str]:
    """Files below a folder of the checkout, but for what Python leaves there."""
    found = (path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.as_posix() for path in found if not BUILT & set(path.parts)}


def test_the_wheel_holds_package_spaces_and_checkpoint(tmp_path):
    if not find_spec("hatchling"):
        pytest.skip("hatchling is not installed: pip install -e '.[dev]'")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    assert {f"sdhub/{name}" for name in files_of("sdhub")} <= names
    assert {f"sdhub/_spaces/{name}" for name in files_of("spaces")} <= names
    assert {f"sdhub/_templates/{name}" for name in files_of("templates")} <= names
