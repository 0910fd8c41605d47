"""Palettes: round trips, properties, refusals."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdhub.compression.histogram import assign, histogram
from sdhub.compression.palettize import BITS, palettize, sketch
from sdhub.core.errors import UsageError

TYPES = [torch.float16, torch.bfloat16, torch.float32]


def normal(*shape, seed=0, dtype=torch.float16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(weight, palette, importance=None):
    off = (palette.dequantize() - weight.float()).square().double()
    return float((off if importance is None else off * importance).sum())


@pytest.mark.parametrize("dtype", TYPES)
def test_counts_are_those_of_a_slow_count(dtype):
    weight = normal(20_000, dtype=dtype) * 0.1
    weight[:7] = torch.tensor([0.0, -0.0, 1e-8, -1e-8, 3.0, 3.0, -3.0]).to(dtype)
    values, counts = histogram(weight)
    slow, slow_counts = np.unique(weight.double().numpy(), return_counts=True)
    assert np.all(np.diff(values) >= 0)
    merged = {}
    for value, count in zip(values, counts, strict=True):
        merged[float(value)] = merged.get(float(value), 0) + int(count)
    assert merged == dict(zip(slow.tolist(), slow_counts.tolist(), strict=True))


def test_many_float32_values_keep_their_number_and_their_mean():
    weight = torch.randn(1_100_000, generator=torch.Generator().manual_seed(0)) * 1e-9
    values, counts = histogram(weight)
    assert counts.sum() == weight.numel() and len(values) < 70_000
    assert float((values * counts).sum()) == pytest.approx(float(weight.double().sum()), rel=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_weight_gets_its_nearest_entry(dtype):
    weight = normal(9000, dtype=dtype)
    centroids = np.sort(np.random.default_rng(0).normal(size=16)).astype(np.float32)
    slow = np.abs(weight.float().numpy()[:, None] - centroids).min(axis=1)
    found = centroids[assign(weight, centroids)]
    assert np.abs(weight.float().numpy() - found) == pytest.approx(slow, abs=1e-7)


@pytest.mark.parametrize("dtype", TYPES)
def test_error_falls_with_every_bit(dtype):
    weight = normal(48, 33, dtype=dtype)
    errors = [error(weight, palettize(weight, bits)) for bits in BITS]
    assert all(more > less for more, less in pairwise(errors))
    assert [palettize(weight, bits).bits for bits in BITS] == list(BITS)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 4, 6]), st.sampled_from(TYPES), st.booleans())
@settings(max_examples=40, deadline=None)
def test_properties(seed, bits, dtype, heavy):
    generator = torch.Generator().manual_seed(seed)
    rows = int(torch.randint(1, 24, (), generator=generator))
    weight = torch.randn(rows, 40, generator=generator)
    weight = (weight**3 if heavy else weight).to(dtype)
    plain = palettize(weight, bits)
    again = palettize(weight, bits)
    assert torch.equal(plain.indices, again.indices) and torch.equal(plain.lut, again.lut)
    shuffled = weight.reshape(-1)[torch.randperm(weight.numel(), generator=generator)].view_as(weight)
    assert torch.equal(palettize(shuffled, bits).lut, plain.lut)
    assert bool((plain.lut.diff(dim=1) >= 0).all())
    # A table per channel is never worse than one for all, nor is a bit more.
    assert error(weight, palettize(weight, bits, group_size=1)) <= 1.002 * error(weight, plain) + 1e-9
    if bits < 4:
        assert error(weight, palettize(weight, bits + 1)) <= error(weight, plain) + 1e-9


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [0.0, 0.125, -3.0])
def test_constant_weights_are_kept(dtype, value):
    weight = torch.full((6, 5), value, dtype=dtype)
    for group_size in (None, 1, 4):
        assert torch.equal(palettize(weight, 4, group_size=group_size).dequantize(), weight.float())


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (1,), (1, 1)])
@pytest.mark.parametrize("lut_dtype", [torch.float32, torch.int8])
def test_empty_and_single_weights(shape, lut_dtype):
    weight = torch.full(shape, 0.5)
    for group_size in (None, 1):
        palette = palettize(weight, 2, group_size=group_size, lut_dtype=lut_dtype)
        assert torch.allclose(palette.dequantize(), weight) and palette.indices.shape == weight.shape


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("options", [{}, {"group_size": 2}, {"cluster_dim": 2}])
def test_infinite_and_nan_weights_are_refused_by_name(bad, dtype, options):
    weight = normal(8, 8, dtype=dtype)
    weight[3, 3] = bad
    with pytest.raises(UsageError, match="1 infinite or NaN"):
        palettize(weight, 4, **options)


@pytest.mark.parametrize(
    ("weight", "bits", "options", "said"),
    [
        (torch.ones(4, 4), 5, {}, "5 bits"),
        (torch.ones(4, 4, dtype=torch.int32), 4, {}, "int32"),
        (torch.ones(4, 4), 4, {"group_size": 0}, "groups of 0"),
        (torch.ones(6, 4), 4, {"cluster_dim": 4}, "vectors of 4"),
        (torch.ones(8, 4), 4, {"cluster_dim": 2, "group_size": 3}, "vectors of 2"),
        (torch.ones(4, 4), 4, {"lut_dtype": torch.uint8}, "uint8"),
        (torch.ones(4, 4), 4, {"importance": torch.ones(3)}, "importance of shape"),
        (torch.ones(4, 4), 4, {"importance": -torch.ones(4)}, "negative"),
    ],
)
def test_wrong_calls_are_refused(weight, bits, options, said):
    with pytest.raises(UsageError, match=said):
        palettize(weight, bits, **options)


def test_groups_have_tables_of_their_own():
    weight = normal(40, 12, 3, 3) * torch.arange(1, 41).view(-1, 1, 1, 1)
    palette = palettize(weight, 4, group_size=16)
    assert palette.lut.shape == (3, 16, 1) and palette.indices.shape == weight.shape
    for group in range(3):
        rows = slice(16 * group, 16 * group + 16)
        alone = palettize(weight[rows], 4).dequantize()
        ours = palette.dequantize()[rows]
        assert (ours - weight[rows]).norm() <= 1.001 * (alone - weight[rows]).norm()
        assert torch.equal(palette.lut[group, :, 0][palette.indices[rows].long()], ours)


def test_importance_moves_the_table_to_what_matters():
    weight = normal(64, 32)
    mass = torch.rand(32, generator=torch.Generator().manual_seed(1)) ** 8
    full = mass.expand(64, -1)
    weighted, plain = palettize(weight, 3, importance=mass), palettize(weight, 3)
    assert error(weight, weighted, full) < 0.999 * error(weight, plain, full)
    assert torch.equal(weighted.indices, palettize(weight, 3, importance=full).indices)
    even = palettize(weight, 3, importance=torch.full_like(mass, 2.5))
    assert error(weight, even) == pytest.approx(error(weight, plain), rel=1e-3)
    assert torch.equal(palettize(weight, 3, importance=torch.zeros(32)).lut, plain.lut)


@pytest.mark.parametrize("lut_dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_tables_as_stored_are_what_indices_are_chosen_for(lut_dtype):
    weight = normal(32, 50)
    palette = palettize(weight, 4, lut_dtype=lut_dtype)
    assert palette.lut.dtype == lut_dtype
    nearest = (weight.float()[..., None] - palette.table.view(-1)).abs().amin(-1)
    assert torch.allclose((palette.dequantize() - weight.float()).abs(), nearest, atol=1e-6)
    assert error(weight, palette) < 1.2 * error(weight, palettize(weight, 4))


@pytest.mark.parametrize("dim", [2, 4])
def test_vectors_hold_consecutive_output_channels(dim):
    weight = normal(16, 6, 3, 3)
    palette = palettize(weight, 4, cluster_dim=dim, group_size=8)
    assert palette.indices.shape == (16 // dim, 6, 3, 3) and palette.lut.shape == (2, 16, dim)
    restored = palette.dequantize()
    for channel in range(16):
        table = palette.lut[channel // 8]
        entry = table[palette.indices[channel // dim].long()]
        assert torch.equal(restored[channel], entry[..., channel % dim])


def test_vectors_of_few_patterns_are_found_again():
    patterns = normal(16, 2, seed=3, dtype=torch.float32) * 4
    chosen = torch.randint(16, (8, 40), generator=torch.Generator().manual_seed(0))
    weight = patterns[chosen].movedim(-1, 1).reshape(16, 40)
    assert error(weight, palettize(weight, 4, cluster_dim=2)) < 1e-3 * float(weight.square().sum())


@pytest.mark.parametrize("size", [40, 3000, 40_000])
def test_sketches_are_near_the_best_tables(size):
    weight = torch.randn(4, size // 4, generator=torch.Generator().manual_seed(size)).half()
    for bits, found in zip(BITS, sketch(weight, BITS), strict=True):
        assert found.bits == bits
        best = (palettize(weight, bits, lut_dtype=torch.float16).dequantize() - weight.float()).square().sum()
        assert (found.dequantize() - weight.float()).square().sum() <= 1.02 * best + 1e-6


def test_a_sketch_of_nothing_and_of_what_is_not_finite():
    assert [each.indices.numel() for each in sketch(torch.zeros(0, 4), (2, 4))] == [0, 0]
    with pytest.raises(UsageError, match="infinite"):
        sketch(torch.full((2, 2), torch.inf), (4,))
