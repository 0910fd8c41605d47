"""Over a hundred hostile inputs: each refused with one line or harmless, nothing run, in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.corpus import CANARY, CASES

PEAK_MIB = 700
SECONDS = 10


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    variables = {**os.environ, CANARY: str(folder / "canary"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.run", str(folder)],
        cwd=Path(__file__).resolve().parent.parent.parent,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (folder / "canary").exists(), "something was executed"
    return json.loads(done.stdout)


def test_there_are_enough_of_them():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 100


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_refused_or_harmless(taken, number):
    result = taken["results"][number]
    assert result["became"] == ("harmless" if result["harmless"] else "refused"), result
    assert result["seconds"] < SECONDS
    assert not [path for path in result["left"] if "/out" not in path] or result["harmless"]
    if result["became"] == "refused":
        message = result["message"]
        assert message and "\n" not in message and len(message) < 500
        assert message.isprintable()
        assert result["exit_code"] in {1, 2, 3}


def test_under_a_limit_of_memory(taken):
    assert taken["peak_mib"] < PEAK_MIB
