"""One-dimensional k-means against brute force over all partitions and a plain dynamic programme."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdhub.compression.kmeans import distinct, exact_kmeans, kmeans


def squared_error(values, weights, centroids):
    """Against the nearest of all centroids."""
    return float(np.sum(weights * np.abs(values[:, None] - centroids).min(1) ** 2))


def cluster_error(values, weights):
    mean = np.average(values, weights=weights)
    return float(np.sum(weights * (values - mean) ** 2))


def brute_force(values, weights, clusters):
    """The least error of all partitions of sorted values into runs."""
    errors = []
    for cuts in combinations(range(1, len(values)), min(clusters, len(values)) - 1):
        bounds = [0, *cuts, len(values)]
        runs = [slice(a, b) for a, b in pairwise(bounds)]
        errors.append(sum(cluster_error(values[run], weights[run]) for run in runs))
    return min(errors)


def programme(values, weights, clusters):
    """The optimal error for every number of clusters up to `clusters`, by the textbook recursion."""
    sums = [np.concatenate([[0], np.cumsum(weights * values**power)]) for power in (0, 1, 2)]
    mass, moment, energy = (each[None, :] - each[:, None] for each in sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(mass > 0, energy - moment**2 / mass, np.inf)
    best = np.concatenate([[0], np.full(len(values), np.inf)])
    errors = []
    for _ in range(clusters):
        best = np.min(best[:, None] + cost, axis=0)
        errors.append(best[-1])
    return errors


def samples(kind, count, seed=0):
    rng = np.random.default_rng(seed)
    drawn = {
        "normal": lambda: rng.normal(size=count),
        "uniform": lambda: rng.uniform(size=count),
        "cauchy": lambda: rng.standard_cauchy(size=count),
        "two heaps": lambda: np.concatenate(
            [rng.normal(5, 0.001, count // 2), rng.normal(0, 0.02, count - count // 2)]
        ),
        "spike": lambda: rng.laplace(size=count) * (rng.random(count) < 0.3),
        "rounded": lambda: np.round(rng.normal(size=count), 2),
    }[kind]()
    return distinct(np.sort(drawn), np.ones(count))


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=9),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_few_values_are_clustered_optimally(values, clusters, seed):
    weights = np.random.default_rng(seed).uniform(0.1, 3, len(values))
    values, weights = distinct(np.sort(np.array(values)), weights)
    found = kmeans(values[None], weights[None], clusters)[0]
    assert np.all(np.diff(found) >= 0)
    best = brute_force(values, weights, clusters)
    assert squared_error(values, weights, found) <= best + 1e-9 * (1 + best)


@pytest.mark.parametrize("kind", ["normal", "uniform", "cauchy", "two heaps", "spike", "rounded"])
def test_error_is_within_a_thousandth_of_the_optimum(kind):
    values, weights = samples(kind, 1500)
    optimum = programme(values, weights, 256)
    for clusters in (2, 4, 8, 16, 64, 256):
        found = kmeans(values[None], weights[None], clusters)[0]
        assert squared_error(values, weights, found) <= 1.001 * optimum[clusters - 1] + 1e-12


def test_weighted_error_is_within_a_thousandth_of_the_optimum():
    values, _ = samples("normal", 1500)
    weights = np.random.default_rng(1).lognormal(0, 2, len(values))
    optimum = programme(values, weights, 64)
    for clusters in (4, 16, 64):
        found = kmeans(values[None], weights[None], clusters)[0]
        assert squared_error(values, weights, found) <= 1.001 * optimum[clusters - 1]


def test_exact_programme_agrees_with_the_textbook():
    values, weights = samples("rounded", 300)
    optimum = programme(values, weights, 8)
    for clusters in (1, 3, 8):
        found = exact_kmeans(values, weights, clusters)
        assert squared_error(values, weights, found) == pytest.approx(optimum[clusters - 1], rel=1e-9)


def test_rows_of_a_batch_are_solved_as_if_alone():
    rows = [samples(kind, 3000, seed) for seed, kind in enumerate(["normal", "cauchy", "spike", "rounded"])]
    counts = np.array([len(values) for values, _ in rows])
    values, weights = np.zeros((2, len(rows), counts.max()))
    for row, (value, weight) in enumerate(rows):
        values[row, : len(value)], weights[row, : len(value)] = value, weight
    together = kmeans(values, weights, 32, counts)
    for (value, weight), found in zip(rows, together, strict=True):
        alone = kmeans(value[None], weight[None], 32)[0]
        error = squared_error(value, weight, alone)
        assert squared_error(value, weight, found) == pytest.approx(error, rel=1e-3)


def test_scale_and_shift_of_the_values_do_not_matter():
    values, weights = samples("normal", 4000)
    found = kmeans(values[None], weights[None], 64)[0]
    moved = kmeans(values[None] * 1e-6 + 3, weights[None] * 1e9, 64)[0]
    error = squared_error(values, weights, found)
    assert squared_error(values, weights, (moved - 3) * 1e6) == pytest.approx(error, rel=1e-3)
