"""One-dimensional weighted k-means, to within about a thousandth of the optimum, for many problems at once.

The exact algorithms (Wu 1991; Grønlund et al., "Fast exact k-means, k-medians and Bregman divergence clustering in
1D", 2017) are dynamic programmes over all places of all k - 1 boundaries. Here a programme runs over a band of
candidates around each boundary of the solution at hand: fractions of a cell, to adjust, and whole cells, to move a
cluster from one end of the range to the other. It is exact within the band, so it leaves the local optima that
Lloyd's iteration (Lloyd 1982) stops in. k grows by doubling, and few values are solved exactly.

All arrays are NumPy float64; `values` are sorted in each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

# Error and time with these are in benchmarks/RESULTS.md (compression): within 1.001 of the optimum.
EXACT_WORK = 1 << 22  # k n² up to which the quadratic programme is quick enough
BATCH = 1 << 16  # gains at once: what fits a core's cache
TINY = 1e-200  # in place of the weight of an empty cluster
GROWING = 1e-2  # a level on the way ends when a round gains less than this share of the error
ROUNDS = 40  # at most
DENSE = 2048  # values up to which bands of all places are tried
DENSE_GAINS = 1 << 20  # gains of such a band
GRID = 128  # places of the first programme
STARTING = 16  # clusters of the first programme


def _symmetric(*offsets: float) -> Floats:
    return np.array(sorted({sign * offset for offset in offsets for sign in (-1, 1)}))


# Candidates of a boundary, in cells. Coarse steps find the density of clusters, fine ones their places.
COARSE = _symmetric(*np.arange(9) / 8, 1.5, 2, 4)
FINE = _symmetric(*np.arange(17) / 16, 2)
POLISH = _symmetric(0, 1 / 96, 1 / 48, 1 / 24, 1 / 16, 1 / 8, 1 / 5, 1, 2)
PLACE = _symmetric(*(2.0**-power for power in range(3, 13)), 0)


@dataclass(frozen=True)
class _Sums:
    """G rows, each shifted and scaled to [-1, 1] with weights of sum 1.

    `weights`, `moments`: (G, n + 1), prefix sums of weights and weighted values; `energy`: (G,), the sum of
    weighted squares; `counts`: (G,), how many values are in use.
    """

    values: Floats
    weights: Floats
    moments: Floats
    energy: Floats
    counts: Ints
    shift: Floats
    scale: Floats

    def rows(self, index: Ints) -> _Sums:
        return _Sums(*(getattr(self, field.name)[index] for field in fields(self)))

    def restored(self, centroids: Floats) -> Floats:
        """Normalized centroids (G, k) in the values' own frame."""
        return np.asarray(centroids * self.scale + self.shift)


def batch_size() -> int:
    """How many problems `kmeans` works on at once."""
    return max(1, BATCH // len(FINE) ** 2)


def kmeans(values: Floats, weights: Floats, clusters: int, counts: Ints | None = None) -> Floats:
    """Ascending centroids (G, `clusters`) of least squared error for G weighted problems.

    `values`: (G, n), each row sorted; `weights`: (G, n), not negative; `counts`: (G,), how many leading entries of
    a row are in use (None: all). `clusters` is a power of two. Rows with no more distinct values than clusters get
    these values, the last repeated. Squared error is at most about 1.001 times the optimum; the same input gives
    the same output.
    """
    values, weights = np.ascontiguousarray(values, np.float64), np.ascontiguousarray(weights, np.float64)
    counts = np.full(len(values), values.shape[1], np.intp) if counts is None else counts
    centroids = np.empty((len(values), clusters))
    large = np.zeros(len(values), bool)
    for row, count in enumerate(counts):
        kept, mass = distinct(values[row, :count], weights[row, :count])
        if _is_quick(len(kept), clusters):
            centroids[row] = exact_kmeans(kept, mass, clusters)
        else:
            large[row] = True
    rows = np.flatnonzero(large)
    for start in range(0, len(rows), batch_size()):
        batch = rows[start : start + batch_size()]
        centroids[batch] = _solve(values[batch], weights[batch], counts[batch], clusters)
    return centroids


def sketches(values: Floats, weights: Floats, clusters: Sequence[int]) -> list[Floats]:
    """Ascending centroids of one problem for several numbers of clusters, powers of two that ascend.

    `values`, `weights`: (n,), as a row of `kmeans`. Each solution grows from the one before it and is only brought
    near its optimum, mostly within a hundredth, so that all together take less time than the last one in full.
    """
    values, weights = distinct(np.asarray(values, np.float64), np.asarray(weights, np.float64))
    if all(_is_quick(len(values), each) for each in clusters):
        return [exact_kmeans(values, weights, each) for each in clusters]
    sums = _sums(values[None], weights[None], np.array([len(values)]))
    return [
        exact_kmeans(values, weights, wanted)
        if _is_quick(len(values), wanted)
        else np.asarray(sums.restored(_centroids(sums, bounds))[0])
        for wanted, bounds in zip(clusters, _grown(sums, clusters), strict=True)
    ]


def exact_kmeans(values: Floats, weights: Floats, clusters: int) -> Floats:
    """The optimal centroids (`clusters`,) of sorted distinct `values` (n,) with positive `weights` (n,).

    The plain dynamic programme, O(clusters · n²) time and O(n²) memory. Fewer values than clusters come back with
    the last repeated; none give zeros.
    """
    if len(values) == 0:
        return np.zeros(clusters)
    if len(values) <= clusters:
        return np.pad(values, (0, clusters - len(values)), mode="edge")
    sums = _sums(values[None], weights[None], np.array([len(values)]))
    bounds = _programme(sums, np.arange(len(values) + 1)[None], clusters)
    return np.asarray(sums.restored(_centroids(sums, bounds))[0])


def _is_quick(count: int, clusters: int) -> bool:
    """Whether so many distinct values are solved exactly."""
    return count <= clusters or clusters * count**2 <= EXACT_WORK


def distinct(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Sorted `values` (n,) without repetition and without those that weigh nothing; weights are added up."""
    kept = weights > 0
    values, weights = values[kept], weights[kept]
    if len(values) == 0:
        return values, weights
    first = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
    return values[first], np.add.reduceat(weights, first)


def _solve(values: Floats, weights: Floats, counts: Ints, clusters: int) -> Floats:
    """Centroids of rows that have more distinct values than clusters."""
    sums = _sums(values, weights, counts)
    bounds = _programme(sums, _grid(sums), min(clusters, STARTING))
    while bounds.shape[1] - 1 < clusters:
        bounds = _doubled(sums, bounds)
        if bounds.shape[1] - 1 < clusters:
            bounds = _improved(sums, bounds, COARSE, GROWING)
    for offsets, settled in ((COARSE, 1e-3), (FINE, 2e-4), (POLISH, 1e-4), (PLACE, 1e-4)):
        bounds = _improved(sums, bounds, offsets, settled)
    for row in np.flatnonzero(counts <= DENSE):
        bounds[[row]] = _improved(sums.rows(np.array([row])), bounds[[row]], None, 1e-4)
    return sums.restored(_centroids(sums, bounds))


def _grown(sums: _Sums, clusters: Sequence[int]) -> Iterator[Ints]:
    """Boundaries of ascending numbers of cells, all but settled."""
    grid = _grid(sums)
    bounds = _programme(sums, grid, min(clusters[0], STARTING))
    for wanted in clusters:
        if wanted <= STARTING:
            bounds = _improved(sums, _programme(sums, grid, wanted), COARSE, GROWING)
        while bounds.shape[1] - 1 < wanted:
            bounds = _improved(sums, _doubled(sums, bounds), COARSE, GROWING)
        yield bounds


def _grid(sums: _Sums) -> Ints:
    """Places (G, GRID + 1) for a first programme.

    Half by the density that is best for many clusters, the cube root of the values' own (Panter and Dite 1951),
    half evenly over the range, for what lies far out.
    """
    gaps = np.zeros_like(sums.values)
    gaps[:, :-1] = np.diff(sums.values)
    density = _prefix(np.cbrt(np.diff(sums.weights) * gaps**2))
    levels = np.linspace(0, 1, GRID // 2)
    places = np.empty((len(gaps), GRID + 1), np.intp)
    for row, (count, curve) in enumerate(zip(sums.counts, density, strict=True)):
        even = np.linspace(sums.values[row, 0], sums.values[row, count - 1], GRID // 2)
        dense = np.searchsorted(curve[: count + 1], levels * curve[count])
        places[row] = np.sort(np.concatenate([[count], dense, np.searchsorted(sums.values[row, :count], even)]))
    places[:, 0] = 0
    return places


def _programme(sums: _Sums, places: Ints, clusters: int) -> Ints:
    """The optimal boundaries (G, clusters + 1) among ascending `places` (G, P), from the first to the last."""
    rows = np.arange(len(places))
    mass, moment = sums.weights[rows[:, None], places], sums.moments[rows[:, None], places]
    gain = _gains(mass[:, None, :] - mass[:, :, None], moment[:, None, :] - moment[:, :, None])
    order = np.arange(places.shape[1])
    gain += np.where(order[:, None] > order, -np.inf, 0.0)
    best = [np.where(order == 0, 0.0, -np.inf)[None].repeat(len(rows), 0)]
    for _ in range(clusters):
        best.append(np.max(best[-1][:, :, None] + gain, axis=1))
    bounds = np.empty((len(rows), clusters + 1), np.intp)
    chosen = np.full(len(rows), places.shape[1] - 1)
    for cluster in range(clusters, -1, -1):
        bounds[:, cluster] = places[rows, chosen]
        if cluster:
            chosen = np.argmax(best[cluster - 1] + gain[rows, :, chosen], axis=1)
    return bounds


def _improved(sums: _Sums, bounds: Ints, offsets: Floats | None, settled: float) -> Ints:
    """Band programme and Lloyd step in turn, row by row until a round gains less than `settled` of the error.

    `offsets` None: the band is all places near a boundary.
    """
    bounds, going = bounds.copy(), np.arange(len(bounds))
    error = _errors(sums, bounds)
    for _ in range(ROUNDS):
        part = sums if len(going) == len(bounds) else sums.rows(going)
        places = _all_places(bounds[going]) if offsets is None else _places(bounds[going], offsets)
        new = _lloyd(part, _band(part, places, offsets))
        new_error = _errors(part, new)
        better, much = new_error < error[going], new_error < error[going] * (1 - settled)
        bounds[going[better]], error[going[better]] = new[better], new_error[better]
        going = going[much]
        if len(going) == 0:
            break
    return bounds


def _band(sums: _Sums, places: Ints, offsets: Floats | None) -> Ints:
    """The best boundaries (G, k + 1) among the candidates (G, k + 1, W) of each, at `offsets` (W,) if given."""
    rows = np.arange(len(places))
    # Rows of the batch go last, where they lie side by side in memory.
    mass, moment, spots = (
        np.ascontiguousarray(np.moveaxis(each, 0, -1))
        for each in (sums.weights[rows[:, None, None], places], sums.moments[rows[:, None, None], places], places)
    )
    clusters, width = len(spots) - 1, spots.shape[1]
    best = np.zeros((clusters + 1, width, len(rows)))
    gain = np.empty((clusters, width, width, len(rows)))
    # A few clusters at a time stay in the cache.
    few = max(1, BATCH // gain[0].size)
    scratch = np.empty((few, *gain.shape[1:]))
    for start in range(0, clusters, few):
        stop = min(start + few, clusters)
        part, span = gain[start:stop], scratch[: stop - start]
        begin, end = (slice(start, stop), slice(None), None), (slice(start + 1, stop + 1), None)
        np.subtract(moment[end], moment[begin], out=part)
        np.subtract(mass[end], mass[begin], out=span)
        _gains(span, part)
        # Cells do not run backwards.
        if offsets is None:
            np.copyto(part, -np.inf, where=spots[begin] > spots[end])
        else:
            for place, behind in enumerate(np.searchsorted(offsets, offsets - 1)):
                part[:, place, :behind] = -np.inf
        for cluster in range(start, stop):
            total = np.add(gain[cluster], best[cluster][:, None], out=scratch[0])
            np.maximum.reduce(total, axis=0, out=best[cluster + 1])
    chosen = best[clusters].argmax(axis=0)
    result = np.zeros(places.shape[:2], np.intp)
    for cluster in range(clusters, 0, -1):
        result[:, cluster] = spots[cluster, chosen, rows]
        chosen = (best[cluster - 1].T + gain[cluster - 1, :, chosen, rows]).argmax(axis=1)
    return result


def _places(bounds: Ints, offsets: Floats) -> Ints:
    """Candidate indices (G, k + 1, W): boundary j moved by fractions of the cells it moves through."""
    clusters = bounds.shape[1] - 1
    position = np.clip(np.arange(clusters + 1)[:, None] + offsets, 0, clusters)
    cell = np.minimum(position.astype(np.intp), clusters - 1)
    low, high = bounds[:, cell], bounds[:, cell + 1]
    places = low + np.rint((position - cell) * (high - low)).astype(np.intp)
    places[:, 0], places[:, -1] = 0, bounds[:, -1:]
    return np.asarray(places)


def _all_places(bounds: Ints) -> Ints:
    """Candidate indices (G, k + 1, W): as many places around each boundary as there is room for."""
    reach = int((DENSE_GAINS / bounds.shape[1]) ** 0.5) // 2
    places = np.clip(bounds[:, :, None] + np.arange(-reach, reach + 1), 0, bounds[:, -1:, None])
    places[:, 0], places[:, -1] = 0, bounds[:, -1:]
    return np.asarray(places)


def _doubled(sums: _Sums, bounds: Ints) -> Ints:
    """Every cell split at its centroid."""
    split = np.clip(_searched(sums, _centroids(sums, bounds)), bounds[:, :-1], bounds[:, 1:])
    result = np.empty((len(bounds), 2 * bounds.shape[1] - 1), np.intp)
    result[:, ::2], result[:, 1::2] = bounds, split
    return result


def _lloyd(sums: _Sums, bounds: Ints) -> Ints:
    """Boundaries half way between the centroids."""
    centroids = _centroids(sums, bounds)
    middle = _searched(sums, (centroids[:, 1:] + centroids[:, :-1]) / 2)
    return np.concatenate([bounds[:, :1], np.minimum(middle, bounds[:, -1:]), bounds[:, -1:]], axis=1)


def _centroids(sums: _Sums, bounds: Ints) -> Floats:
    rows = np.arange(len(bounds))[:, None]
    mass, moment = np.diff(sums.weights[rows, bounds]), np.diff(sums.moments[rows, bounds])
    first = sums.values[rows, np.minimum(bounds[:, :-1], sums.counts[:, None] - 1)]
    last = np.maximum(first, sums.values[rows, np.maximum(bounds[:, 1:] - 1, 0)])
    mean = np.divide(moment, mass, out=first.copy(), where=mass > 0)
    # Rounding of the sums must not take a centroid out of its cell, or their order is lost.
    return np.asarray(np.clip(mean, first, last))


def _errors(sums: _Sums, bounds: Ints) -> Floats:
    """Squared errors (G,) in the normalized frame."""
    rows = np.arange(len(bounds))[:, None]
    gains = _gains(np.diff(sums.weights[rows, bounds]), np.diff(sums.moments[rows, bounds]))
    return np.asarray(np.maximum(sums.energy - gains.sum(axis=1), 0.0))


def _gains(mass: Floats, moment: Floats) -> Floats:
    """moment² / mass, by which a cluster lowers the squared error; 0 where it is empty. Overwrites both."""
    np.multiply(moment, moment, out=moment)
    np.maximum(mass, TINY, out=mass)
    return np.asarray(np.divide(moment, mass, out=moment))


def _searched(sums: _Sums, targets: Floats) -> Ints:
    """`searchsorted` row by row. Values lie in [-1, 1], so that rows lifted by 4 each are one sorted array."""
    rows, width = sums.values.shape
    if rows == 1:
        return np.asarray(np.searchsorted(sums.values[0], targets[0])[None], np.intp)
    lift = 4.0 * np.arange(rows)[:, None]
    found = np.searchsorted((sums.values + lift).ravel(), (targets + lift).ravel())
    below = width * np.arange(rows)[:, None]
    return np.asarray(found.reshape(targets.shape) - below)


def _sums(values: Floats, weights: Floats, counts: Ints) -> _Sums:
    used = np.arange(values.shape[1]) < counts[:, None]
    weights = np.where(used, weights, 0.0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    # Sums of values less their mean lose no digits.
    shift = np.sum(weights * np.where(used, values, 0.0), axis=1, keepdims=True)
    last = np.take_along_axis(values, counts[:, None] - 1, 1)
    centred = np.where(used, values, last) - shift
    scale = np.max(np.abs(centred), axis=1, keepdims=True)
    centred /= scale
    products = weights * centred
    return _Sums(
        values=centred,
        weights=_prefix(weights),
        moments=_prefix(products),
        energy=np.sum(products * centred, axis=1),
        counts=counts,
        shift=shift,
        scale=scale,
    )


def _prefix(terms: Floats) -> Floats:
    sums = np.zeros((terms.shape[0], terms.shape[1] + 1))
    np.cumsum(terms, axis=1, out=sums[:, 1:])
    return sums
