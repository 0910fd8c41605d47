"""Over a hundred hostile inputs: each refused with one line or harmless, nothing run, in little memory."""

from __future__ import annotations

import pytest

from tests.hostile.corpus import CASES, SOURCES
from tests.hostile.running import MORE_MIB, SECONDS, require_one_line, require_quiet, run

CODE = (".py", ".pyc", ".pyd", ".so", ".dylib", ".bin", ".pt", ".ckpt")


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    results = run("run", folder)
    require_quiet(folder)
    return results


def test_there_are_enough_of_them():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    assert len(SOURCES) >= 120


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_refused_or_harmless(taken, number):
    case, result = CASES[number], taken[number]
    assert result["became"] == ("harmless" if case.harmless or case.built else "refused"), result
    assert result["seconds"] < SECONDS
    assert result["more_mib"] < MORE_MIB
    assert not [path for path in result["left"] if "/out" not in path] or case.harmless
    assert result["events"] == []
    stages = [result, *(result[each] for each in ("plan", "build") if each in result)]
    for stage in stages:
        require_one_line(stage)
    assert stages[-1]["became"] == "refused" or not case.built, result


def test_builds_are_whole_or_leave_nothing(taken):
    builds = [each["build"] for each in taken if "build" in each]
    for each in builds:
        if each["became"] == "refused":
            assert each["made"] == [], each
        else:
            assert {"built/recipe.json", "built/model_index.json"} <= set(each["made"])
            assert not [name for name in each["made"] if name.endswith(CODE)]
    assert {each["became"] for each in builds} == {"refused", "harmless"}
