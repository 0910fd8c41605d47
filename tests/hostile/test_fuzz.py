"""Four thousand configs with one value changed: taken, or refused in one line that says where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES, PROCESSES = 4_000, 2
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    share = CASES // PROCESSES
    started = []
    for number in range(PROCESSES):
        out = folder / f"{number}.json"
        command = [sys.executable, "-m", "tests.hostile.fuzz", str(folder / str(number))]
        with out.open("w") as stream:
            started.append(
                subprocess.Popen(
                    [*command, str(number * share), str((number + 1) * share)],
                    cwd=ROOT,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
                    stdout=stream,
                    stderr=subprocess.PIPE,
                )
            )
    for process in started:
        told = process.communicate()[1]
        assert process.returncode == 0, told[-3000:]
    return [row for number in range(PROCESSES) for row in json.loads((folder / f"{number}.json").read_text())]


def test_no_traceback(results):
    assert len(results) == CASES
    strange = [row for row in results if row["became"] not in ("taken", "refused")]
    assert not strange, strange[:3]


def test_one_line_each(results):
    for row in results:
        if row["became"] == "refused":
            message = row["message"]
            assert message.isprintable() and 0 < len(message) < 500, row
            assert row["hint"] and "\n" not in row["hint"], row
            assert row["exit_code"] in (2, 3), row


def test_refusals_say_where(results):
    """The component or the key; of `model_index.json`, by which a checkpoint is told, at least the checkpoint."""
    for row in results:
        if row["became"] == "refused":
            component = row["path"].partition("/")[0]
            key = next((each for each in row["keys"] if isinstance(each, str)), "")
            where = {row["family"]} if component == "model_index.json" else {component, key}
            assert any(each.lower() in row["message"].lower() for each in where), row


def test_both_come_about(results):
    for family in {row["family"] for row in results}:
        assert {row["became"] for row in results if row["family"] == family} == {"taken", "refused"}
