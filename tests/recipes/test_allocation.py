"""Allocation beside brute force."""

from __future__ import annotations

import random
from itertools import product

import pytest

from sdhub.analysis.allocation import Option, Options, allocate, loyal, path, total
from sdhub.core.errors import UsageError


def problem(seed: int, layers: int = 5) -> Options:
    """Random layers whose errors fall about fourfold a bit, with dents that are on no hull."""
    draw = random.Random(seed)
    return {
        f"layer {number}": [
            Option(bits * weights, draw.uniform(0.5, 2) * scale * 4.0**-bits) for bits in (1, 2, 3, 4, 6)
        ]
        for number in range(layers)
        for weights, scale in [(draw.randrange(100, 900), 10 ** draw.uniform(-3, 0))]
    }


def brute(options: Options, size: int) -> float:
    """The least error of all choices of at most `size`."""
    found = [total(options, dict(zip(options, numbers, strict=True))) for numbers in all_choices(options)]
    return min(choice.error for choice in found if choice.size <= size)


def all_choices(options: Options) -> product[tuple[int, ...]]:
    return product(*(range(len(found)) for found in options.values()))


@pytest.mark.parametrize("seed", range(5))
def test_every_step_of_the_path_is_the_best_of_its_size(seed: int) -> None:
    options = problem(seed)
    steps = path(options)
    assert [choice.size for choice in steps] == sorted({choice.size for choice in steps})
    for choice in steps:
        assert choice.error == pytest.approx(brute(options, choice.size), rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_is_kept_and_nearly_as_good_as_the_best(seed: int) -> None:
    options = problem(seed)
    steps = path(options)
    draw = random.Random(seed)
    for _ in range(5):
        size = draw.randrange(steps[0].size, steps[-1].size)
        choice = allocate(options, size)
        assert choice.size <= size
        least = brute(options, size)
        behind = max(step.error for step in steps if step.size <= size < step.size + 6000)
        assert least <= choice.error * (1 + 1e-9) and choice.error <= behind * (1 + 1e-9)
        assert choice.error <= 1.5 * least


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(UsageError, match="narrowest"):
        allocate({"a": [Option(100, 1.0)]}, 99)


def test_a_worse_and_larger_option_is_never_taken() -> None:
    options = {"a": [Option(10, 5.0), Option(20, 6.0), Option(30, 1.0)]}
    assert [choice.chosen["a"] for choice in path(options)] == [0, 2]


def test_equal_layers_are_taken_by_name() -> None:
    options = {name: [Option(1, 4.0), Option(2, 1.0)] for name in "cab"}
    assert allocate(options, 5).chosen == {"a": 1, "b": 1, "c": 0}


def test_former_choices_give_way_to_twice_as_good_ones_only() -> None:
    options = {"a": [Option(1, 1.0), Option(1, 0.8)], "b": [Option(1, 1.0), Option(1, 0.4)]}
    assert allocate(loyal(options, {"a": 0, "b": 0}), 2).chosen == {"a": 0, "b": 1}
