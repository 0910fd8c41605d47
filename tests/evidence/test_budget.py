from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import inf

import pytest

from sdhub.core.errors import UsageError
from sdhub.evidence.budget import RUNGS, Budget, Cost, afforded, seconds_of
from sdhub.evidence.sampling import Prompt, Sampling

FULL = Sampling(tuple(Prompt(str(n), n) for n in range(8)), 30, 5.0, 1024, 1024)


def cost(seconds: float, variants: int = 1) -> Cost:
    """Of a step at full size, and of a decoding; both go with the pixels."""
    return Cost(
        step=lambda width, height: seconds * width * height / 1024**2,
        decode=lambda width, height: seconds * width * height / 1024**2,
        relative=(1.0,) * variants,
    )


def bought(seconds, minutes, variants=1, **flags):
    given = {"fixed": False, "exact": False, **flags}
    return afforded(FULL, Budget(minutes=minutes), cost(seconds, variants), **given)


def test_a_small_model_is_measured_whole():
    scope = bought(0.01, 20)
    assert (scope.sampling, scope.whole, scope.more) == (FULL, True, None)


def test_what_is_bought_fits_and_the_next_does_not():
    for seconds in (2, 10, 20):
        scope = bought(seconds, 20)
        assert scope.seconds <= 20 * 60
        assert scope.more is not None and scope.more.seconds > 20 * 60
        assert scope.seconds == seconds_of(scope.sampling, cost(seconds), whole=scope.whole)


def test_more_minutes_never_buy_less():
    scopes = [bought(10, minutes) for minutes in (1, 5, 10, 20, 60, 200, 1000, 10_000)]
    for less, more in pairwise(scopes):
        assert less.seconds <= more.seconds
        assert len(less.sampling.prompts) <= len(more.sampling.prompts)
    assert scopes[-1].whole


def test_the_least_is_measured_even_where_it_costs_more():
    scope = bought(1000, 1)
    prompts, steps, share = RUNGS[0]
    assert (len(scope.sampling.prompts), scope.sampling.steps) == (prompts, steps)
    assert scope.sampling.width == 1024 * share
    assert scope.seconds > 60


def test_several_variants_share_the_budget_and_the_base():
    one, three = (seconds_of(FULL, cost(1, count), whole=False) for count in (1, 3))
    assert one < three < 3 * one
    assert bought(5, 20, 3).seconds <= 20 * 60


def test_fixed_sizes_are_kept():
    assert {bought(seconds, 20, fixed=True).sampling.width for seconds in (0.1, 5, 100)} == {1024}


def test_what_somebody_asked_for_is_drawn_to_the_letter():
    scope = bought(100, 1, exact=True)
    assert (scope.sampling, scope.whole) == (FULL, False)
    assert bought(0.01, 20, exact=True).whole


def test_no_picture_is_made_larger_or_longer_than_usual():
    small = replace(FULL, steps=4, prompts=FULL.prompts[:1], width=64, height=64)
    for minutes in (0.01, 1, 100):
        scope = afforded(small, Budget(minutes=minutes), cost(100), fixed=False, exact=False)
        assert scope.sampling == small


@pytest.mark.parametrize("minutes", [0, -1, inf, float("nan")])
def test_minutes_that_mean_nothing(minutes):
    with pytest.raises(UsageError, match="minutes"):
        Budget(minutes=minutes)


def test_a_level_that_is_none():
    with pytest.raises(UsageError, match="no evidence is called 'some'"):
        Budget("some")  # type: ignore[arg-type]


def test_levels_are_minutes():
    assert [Budget(level).bound for level in ("quick", "standard", "full")] == [5, 20, inf]
    assert Budget("full").document() == {"level": "full", "minutes": None}
    assert Budget("full", 7).bound == 7
