"""Several sources: the memory bound, failures that stop no others, outcomes in order."""

from __future__ import annotations

import threading
import time

import pytest

from sdhub.core.errors import BuildError, SourceError
from sdhub.core.progress import Progress
from sdhub.workflow import many
from sdhub.workflow.many import PublishRequest, SourceResult, publish_many
from sdhub.workflow.options import Options

GIB = 2**30


class Told(Progress):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


@pytest.fixture
def world(monkeypatch):
    """Orders named by their size in GiB; remembers how much ran at once."""
    running, most, lock = [], [], threading.Lock()

    def peak(self):
        if self.source == "broken":
            raise SourceError("no such checkpoint", hint="look")
        return int(float(self.source.partition("-")[0]) * GIB)

    def run_isolated(order, progress):
        size = order.peak_bytes()
        with lock:
            running.append(size)
            most.append((sum(running), len(running)))
        progress.note("  working")
        time.sleep(0.02)
        with lock:
            running.remove(size)
        if order.source.endswith("dies"):
            raise BuildError("it died")
        return SourceResult(order.source, {"variants": []}, exit_code=3 if order.source.endswith("refused") else 0)

    monkeypatch.setattr(PublishRequest, "peak_bytes", peak)
    monkeypatch.setattr(many, "_run_isolated", run_isolated)
    return most


def orders(*names):
    return [PublishRequest(name, Options()) for name in names]


def test_one_at_a_time_unless_more_are_asked_for(world):
    done = publish_many(orders("1", "2", "3"))
    assert [each.source for each in done] == ["1", "2", "3"]
    assert max(count for _, count in world) == 1


def test_memory_is_a_bound(world):
    names = [f"{size}-{number}" for number, size in enumerate((3, 5, 2, 6, 4, 1, 2, 7))]
    done = publish_many(orders(*names), jobs=8, memory=8 * GIB)
    assert [each.source for each in done] == names
    assert max(size for size, _ in world) <= 8 * GIB
    assert max(count for _, count in world) > 1


def test_what_is_larger_than_the_bound_runs_by_itself(world):
    publish_many(orders("1-a", "20-b", "1-c"), jobs=3, memory=4 * GIB)
    assert all(count == 1 for size, count in world if size >= 20 * GIB)


def test_one_failure_stops_no_other(world):
    told = Told()
    done = publish_many(orders("1-a", "broken", "1-dies", "1-refused", "1-b"), jobs=2, progress=told)
    assert [each.exit_code for each in done] == [0, 2, 1, 3, 0]
    assert done[1].document() == {
        "named": "broken",
        "error": {"message": "no such checkpoint", "hint": "look"},
        "source": None,
        "variants": [],
    }
    assert "[1-b] working" in told.said
