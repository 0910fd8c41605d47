from __future__ import annotations

import pytest

from sdhub.evidence.latency import MAX_ROUNDS, MIN_ROUNDS, alternate
from tests.evidence.fakes import FakePipeline, sampling


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pipeline(self, seconds: float, *, first: float = 0.0) -> FakePipeline:
        """A pipeline whose steps take `seconds`, and the first step of every call `first` more."""
        pipe = FakePipeline()
        fresh = {"calls": -1}

        def wait() -> None:
            self.now += seconds
            if fresh["calls"] != len(pipe.calls):
                fresh["calls"] = len(pipe.calls)
                self.now += first

        pipe.before_step = wait
        return pipe


def test_ratio_is_base_over_variant_without_warm_up() -> None:
    clock = Clock()
    timed = alternate(clock.pipeline(0.3, first=9.0), clock.pipeline(0.1, first=2.0), sampling(), clock=clock)
    assert timed.base_seconds_per_step == pytest.approx(0.3)
    assert timed.variant_seconds_per_step == pytest.approx(0.1)
    assert timed.ratio == pytest.approx(3.0)
    assert timed.threads >= 1


def test_a_third_pipeline_is_timed_along() -> None:
    clock = Clock()
    timed = alternate(
        clock.pipeline(0.6),
        clock.pipeline(0.1),
        sampling(),
        reference=("plain", clock.pipeline(0.2)),
        clock=clock,
    )
    assert timed.ratio == pytest.approx(6.0)
    assert (timed.reference, timed.reference_ratio) == ("plain", pytest.approx(2.0))
    assert timed.reference_seconds_per_step == pytest.approx(0.2)


def test_a_slower_variant_has_a_ratio_below_one() -> None:
    clock = Clock()
    assert alternate(clock.pipeline(0.1), clock.pipeline(0.2), sampling(), clock=clock).ratio == pytest.approx(0.5)


def test_one_disturbed_run_does_not_count() -> None:
    clock = Clock()
    disturbed = clock.pipeline(0.1)
    steady = disturbed.before_step

    def wait() -> None:
        steady()
        clock.now += 50.0 if len(disturbed.calls) == 3 else 0.0  # a call after the first

    disturbed.before_step = wait
    timed = alternate(clock.pipeline(0.2), disturbed, sampling(), budget=1e6, clock=clock)
    assert timed.ratio == pytest.approx(2.0)


@pytest.mark.parametrize(("seconds", "rounds"), [(1e-3, MAX_ROUNDS), (2.4, MIN_ROUNDS), (4.0, 2), (100.0, 1)])
def test_the_budget_bounds_the_rounds(seconds: float, rounds: int) -> None:
    clock = Clock()
    assert alternate(clock.pipeline(seconds), clock.pipeline(seconds), sampling(), clock=clock).rounds == rounds


def test_runs_alternate() -> None:
    clock = Clock()
    order: list[str] = []
    pipes = [clock.pipeline(0.1), clock.pipeline(0.1)]
    for name, pipe in zip("bv", pipes, strict=True):
        call = pipe.before_step

        def wait(name: str = name, call: object = call) -> None:
            order.append(name)
            call()  # type: ignore[operator]

        pipe.before_step = wait
    alternate(*pipes, sampling(), clock=clock)
    runs = [name for number, name in enumerate(order) if number == 0 or order[number - 1] != name]
    assert "".join(runs) == "bv" * (MAX_ROUNDS + 1)


@pytest.mark.parametrize("steps", [1, 2])
def test_checkpoints_of_one_step_can_be_timed(steps: int) -> None:
    clock = Clock()
    timed = alternate(clock.pipeline(0.4), clock.pipeline(0.2), sampling(steps=steps), clock=clock)
    assert timed.ratio == pytest.approx(2.0)
