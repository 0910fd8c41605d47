"""Over a hundred hostile inputs: each refused with one line or harmless, nothing run, in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.corpus import CANARY, CASES, SOURCES

MORE_MIB = 2_048
SECONDS = 10


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    variables = {**os.environ, CANARY: str(folder / "canary"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    variables["SDHUB_HOME"], variables["OMP_NUM_THREADS"] = str(folder / "tmp" / "home"), "1"
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
    assert len(names) == len(set(names))
    assert len(SOURCES) >= 120


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_refused_or_harmless(taken, number):
    case, result = CASES[number], taken["results"][number]
    assert result["became"] == ("harmless" if case.harmless or case.built else "refused"), result
    assert result["seconds"] < SECONDS
    assert not [path for path in result["left"] if "/out" not in path] or case.harmless
    assert result["events"] == []
    stages = [result, *(result[each] for each in ("plan", "build") if each in result)]
    for stage in stages:
        assert stage["became"] in ("harmless", "refused"), result
        if stage["became"] == "refused":
            message = stage["message"]
            assert message and "\n" not in message and len(message) < 500
            assert message.isprintable()
            assert stage["exit_code"] in {1, 2, 3}
    assert stages[-1]["became"] == "refused" or not case.built, result


def test_under_a_limit_of_memory(taken):
    assert taken["more_mib"] < MORE_MIB
