"""Integer grids and NVFP4, against closed forms and torch's own types."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdhub.compression.affine import quantize
from sdhub.compression.formats import E2M1, nvfp4
from sdhub.core.errors import UsageError

TYPES = [torch.float16, torch.bfloat16, torch.float32]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(weight, grid, mass=1.0):
    return float(((grid.dequantize() - weight.float()).square() * mass).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("options", [{"per": "tensor"}, {}, {"group_size": 16}])
def test_errors_are_at_most_half_a_step_and_fall_with_every_bit(symmetric, options):
    weight = normal(24, 64)
    errors = []
    for bits in range(2, 9):
        grid = quantize(weight, bits, symmetric=symmetric, **options)
        step = grid.scale.repeat_interleave(grid.group_size, dim=1)
        # A rounded zero point may cut off half a step at one end.
        assert bool(((grid.dequantize() - weight).abs() <= step * (0.5001 if symmetric else 1.0001)).all())
        least, greatest = int(grid.codes.min()), int(grid.codes.max())
        assert (-(1 << bits - 1) if symmetric else 0) <= least
        assert greatest < 1 << (bits - 1 if symmetric else bits)
        errors.append(error(weight, grid))
    assert all(more > less for more, less in pairwise(errors))


def test_asymmetric_grids_are_those_of_torch():
    weight = normal(8, 32)
    grid = quantize(weight, 8)
    zero = grid.zero_point.view(-1).int()
    theirs = torch.fake_quantize_per_channel_affine(weight, grid.scale.view(-1), zero, 0, 0, 255)
    assert torch.allclose(grid.dequantize(), theirs, atol=1e-6)


def test_symmetric_scale_is_the_peak_over_the_greatest_code():
    weight = normal(4, 32)
    grid = quantize(weight, 4, symmetric=True, group_size=8)
    assert torch.allclose(grid.scale, weight.view(4, 4, 8).abs().amax(-1) / 7)
    assert grid.zero_point is None and grid.codes.dtype == torch.int8


def test_convolutions_are_grouped_along_flattened_inputs():
    weight = normal(6, 8, 3, 3)
    grid = quantize(weight, 4, group_size=9)
    assert grid.scale.shape == (6, 8)
    assert torch.allclose(grid.dequantize().flatten(1), quantize(weight.flatten(1), 4, group_size=9).dequantize())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("integer_zero", [True, False])
def test_search_never_adds_error_and_helps_heavy_tails(symmetric, integer_zero):
    weight = normal(32, 128) ** 3
    options = {"symmetric": symmetric, "integer_zero": integer_zero}
    plain, searched = (quantize(weight, 4, search=steps, **options) for steps in (0, 20))
    assert error(weight, searched) < 0.97 * error(weight, plain)
    per_row = ((plain.dequantize() - weight) ** 2).sum(1) - ((searched.dequantize() - weight) ** 2).sum(1)
    assert bool((per_row > -1e-4).all())


def test_search_weighs_by_importance():
    weight = normal(32, 64)
    mass = torch.rand(64, generator=torch.Generator().manual_seed(1)) ** 8
    weighted, plain = quantize(weight, 3, search=20, importance=mass), quantize(weight, 3, search=20)
    assert error(weight, weighted, mass) < error(weight, plain, mass)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 8),
    st.sampled_from(TYPES),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 4]),
)
@settings(max_examples=50, deadline=None)
def test_properties(seed, bits, dtype, symmetric, integer_zero, search):
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(5, 24, generator=generator) + 3 * torch.randn(5, 1, generator=generator)).to(dtype)
    options = {"symmetric": symmetric, "integer_zero": integer_zero, "search": search}
    grid = quantize(weight, bits, **options)
    again = quantize(weight, bits, **options)
    assert torch.equal(grid.codes, again.codes) and torch.equal(grid.scale, again.scale)
    turned = torch.randperm(24, generator=generator)
    assert torch.allclose(quantize(weight[:, turned], bits, **options).scale, grid.scale, rtol=1e-4)
    assert error(weight, grid) <= float(weight.float().square().sum()) + 1e-6


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [0.0, 0.5, -2.0])
def test_constant_weights_are_kept(dtype, value):
    weight = torch.full((3, 8), value, dtype=dtype)
    for options in ({"symmetric": True}, {}, {"integer_zero": False}, {"search": 5}, {"per": "tensor"}):
        assert torch.allclose(quantize(weight, 4, **options).dequantize(), weight.float(), atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (1,), (0,)])
@pytest.mark.parametrize("options", [{"per": "tensor"}, {}, {"symmetric": True, "search": 3}])
def test_empty_and_single_weights(shape, options):
    weight = torch.full(shape, -0.75)
    assert torch.allclose(quantize(weight, 4, **options).dequantize(), weight)


@pytest.mark.parametrize("make", [lambda w: quantize(w, 4), nvfp4])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_infinite_and_nan_weights_are_refused_by_name(make, bad):
    weight = normal(4, 64)
    weight[1, 2] = bad
    with pytest.raises(UsageError, match="1 infinite or NaN"):
        make(weight)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 1}, "1 bits"),
        ({"bits": 9}, "9 bits"),
        ({"bits": 4, "group_size": 7}, "groups of 7"),
        ({"bits": 4, "group_size": 8, "per": "tensor"}, "one scale per tensor"),
        ({"bits": 4, "importance": torch.ones(5)}, "importance of shape"),
    ],
)
def test_wrong_calls_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        quantize(normal(4, 16), **options)


def test_nvfp4_picks_the_nearest_level_under_its_scales():
    weight = normal(8, 64)
    grid = nvfp4(weight)
    assert grid.block_scale.dtype == torch.float8_e4m3fn and grid.block_scale.shape == (8, 4)
    levels = torch.tensor(E2M1)
    scale = (grid.block_scale.float() * grid.tensor_scale)[..., None, None]
    nearest = (levels * scale - weight.view(8, 4, 16, 1)).abs().amin(-1)
    off = (grid.dequantize() - weight).abs().view(8, 4, 16)
    assert torch.allclose(off, nearest, atol=1e-6)
    assert error(weight, nvfp4(weight, search=8)) < error(weight, grid)


def test_e2m1_codes_are_sign_exponent_mantissa():
    for code, level in enumerate(E2M1):
        sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
        value = mantissa * 0.5 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1)
        assert abs(level) == value and (sign == 1) == (code >= 8)


def test_what_nvfp4_holds_is_kept():
    levels = torch.tensor(E2M1)
    codes = torch.randint(16, (4, 32), generator=torch.Generator().manual_seed(0))
    codes[:, ::16] = 7
    scale = torch.tensor([448.0, 2.0]).repeat_interleave(16)
    weight = levels[codes] * scale * 0.01
    assert torch.allclose(nvfp4(weight).dequantize(), weight, rtol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
def test_nvfp4_takes_zero_and_every_type(dtype):
    assert not bool(nvfp4(torch.zeros(2, 64, dtype=dtype)).dequantize().any())
    weight = normal(4, 64, dtype=dtype)
    assert float((nvfp4(weight).dequantize() - weight.float()).norm() / weight.float().norm()) < 0.12


def test_widths_that_groups_do_not_divide_are_refused():
    with pytest.raises(UsageError, match="groups of"):
        nvfp4(normal(4, 24))
    with pytest.raises(UsageError, match="no matrix"):
        nvfp4(normal(64))
