"""The public names are what they say, in a fresh interpreter, whatever was imported before."""

import subprocess
import sys

import pytest

BEFORE = {
    "nothing": "",
    "every submodule": """
import pkgutil
for each in pkgutil.iter_modules(sdhub.__path__):
    if each.name != "__main__":
        importlib.import_module(f"sdhub.{each.name}")
""",
    "from": "from sdhub.workflow.publish import prepare; import sdhub.workflow.plan, sdhub.workflow.publish, sdhub.workflow.analyze",
}
SCRIPT = """
import importlib, types
import sdhub
{before}
for name in sdhub.__all__:
    found = getattr(sdhub, name)
    assert callable(found) and not isinstance(found, types.ModuleType), name
from sdhub import inspect, open_variant
from sdhub.workflow import publish
assert publish.__module__ == "sdhub.workflow.publish" and publish.__name__ == "publish"
assert isinstance(importlib.import_module("sdhub.workflow.publish"), types.ModuleType)
"""


@pytest.mark.parametrize("before", BEFORE)
def test_public_names(before):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=BEFORE[before])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
