"""Over eighty hostile variants at every door: refused with one line or harmless, nothing run, in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.corpus import CANARY
from tests.hostile.variants import CASES, KINDS

MORE_MIB = 2048
SECONDS = 10


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    variables = {**os.environ, CANARY: str(folder / "canary"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.run_variants", str(folder)],
        cwd=Path(__file__).resolve().parent.parent.parent,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (folder / "canary").exists(), "something was executed"
    assert not list((folder / "tmp").glob("sdhub-*")), "views stay behind"
    return json.loads(done.stdout[done.stdout.index('{"clean"') :])


def test_there_are_enough_of_them_of_every_kind():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 80
    assert {case.kind for case in CASES} == set(KINDS)


def test_sound_variants_pass_the_doors(taken):
    assert set(taken["clean"]) == set(KINDS)
    assert {doors["gate"]["became"] for doors in taken["clean"].values()} == {"harmless"}, taken["clean"]
    for door in ("generate", "verify", "space"):
        assert taken["clean"]["openvino"][door]["became"] == "harmless", taken["clean"]["openvino"]
    for door in ("generate", "verify"):
        assert taken["clean"]["sdnq"][door]["became"] == "harmless", taken["clean"]["sdnq"]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_refused_in_one_line_or_harmless(taken, number):
    case, doors = CASES[number], taken["results"][number]["doors"]
    for door, result in doors.items():
        assert not result["events"], (door, result)
        assert result["seconds"] < SECONDS, (door, result)
        assert result["became"] in {"refused", "harmless"}, (door, result)
        if case.by == "gate" or (case.by == "sampling" and door != "space"):
            assert result["became"] == "refused", (door, result)
        if case.by is None and case.kind == "openvino":
            assert result["became"] == "harmless", (door, result)
        if result["became"] == "refused":
            message = result["message"]
            assert message and "\n" not in message and len(message) < 500
            assert message.isprintable()
            assert "sdhub-view-" not in message
            assert result["exit_code"] in {1, 2, 3}


def test_under_a_limit_of_memory(taken):
    assert taken["more_mib"] < MORE_MIB
