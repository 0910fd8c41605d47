"""Over eighty hostile variants at every door: refused with one line or harmless, nothing run, in little memory."""

from __future__ import annotations

import pytest

from tests.hostile.running import MORE_MIB, SECONDS, require_one_line, require_quiet, run
from tests.hostile.variants import CASES, KINDS


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    results = run("run_variants", folder)
    require_quiet(folder)
    return results


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
        require_one_line(result)
        if case.by == "gate" or (case.by == "sampling" and door != "space"):
            assert result["became"] == "refused", (door, result)
        if case.by is None and case.kind == "openvino":
            assert result["became"] == "harmless", (door, result)


def test_under_a_limit_of_memory(taken):
    assert taken["more_mib"] < MORE_MIB
