"""4-bit arithmetic element by element, and SVDQuant's decomposition on tokens that it did not see."""

import pytest
import torch

from sdhub.compression.formats import E2M1, nearest_levels
from sdhub.compression.lowrank import randomized_svd
from sdhub.compression.svdquant import Inputs, split
from sdhub.compression.w4a4 import GROUP, linear, nearest_e2m1, rounded_inputs, rounded_weight
from sdhub.core.errors import UsageError


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(rows=96, columns=128, tokens=900):
    """A weight, and correlated inputs of which a few channels are ten times larger."""
    weight = gaussian(rows, columns, seed=1) * torch.exp(0.4 * gaussian(1, columns, seed=2))
    mix = gaussian(columns, columns, seed=3) * torch.logspace(0, -1, columns)
    inputs = gaussian(tokens, columns, seed=4) @ mix.T
    inputs[:, ::17] *= 10
    return weight, inputs


def seen_of(inputs):
    return Inputs([inputs.T @ inputs], len(inputs), inputs[:300], inputs.abs().amax(dim=0))


def test_int4_inputs_by_hand():
    inputs = gaussian(3, 128, seed=5)
    given = rounded_inputs(inputs, "int4")
    for row, mine in zip(inputs.half().float(), given, strict=True):
        for start in (0, 64):
            group = row[start : start + 64]
            scale = group.abs().max() / 7
            expected = torch.tensor([round(float(value / scale)) for value in group]) * scale.half().float()
            assert torch.allclose(mine[start : start + 64], expected, atol=1e-6)


def test_nvfp4_inputs_by_hand():
    inputs = gaussian(2, 32, seed=6)
    given = rounded_inputs(inputs, "nvfp4")
    levels = sorted({*E2M1})
    for row, mine in zip(inputs.half().float(), given, strict=True):
        for start in (0, 16):
            group = row[start : start + 16]
            scale = group.abs().max() / 6
            stored = float(scale.to(torch.float8_e4m3fn))
            expected = [
                min(levels, key=lambda level: abs(level - float(value / scale))) * stored for value in group
            ]
            assert torch.allclose(mine[start : start + 16], torch.tensor(expected), atol=1e-6)


def test_silent_inputs_stay_silent():
    for precision in GROUP:
        assert not rounded_inputs(torch.zeros(2, 128), precision).any()


def test_e2m1_rounds_to_the_nearest_and_ties_to_even():
    values = torch.cat([torch.linspace(-9, 9, 20001), torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])])
    levels = torch.tensor(E2M1)
    assert torch.equal(nearest_e2m1(values), levels[nearest_levels(values, levels).long()])


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_are_what_their_type_holds(precision, dtype):
    found = rounded_weight(gaussian(32, 128, seed=7) * 1e-3, precision, dtype)
    if precision == "int4":
        assert torch.equal(found.scale, found.scale.to(dtype).float())
    else:
        assert torch.equal(found.tensor_scale, found.tensor_scale.to(dtype).float())
        assert found.block_scale.dtype == torch.float8_e4m3fn
    weight = gaussian(32, 128, seed=7) * 1e-3
    assert float((found.dequantize() - weight).norm() / weight.norm()) < 0.12


def test_the_layer_is_two_paths():
    _, inputs = layer()
    residual, smooth = gaussian(96, 128, seed=8), gaussian(128, seed=9).abs() + 0.5
    down, up = gaussian(16, 128, seed=10), gaussian(96, 16, seed=11)
    given = linear(inputs, residual, smooth, down, up, "int4")
    half = inputs.half().float()
    rounded = rounded_inputs((half / smooth).half(), "int4")
    expected = torch.einsum("tk,nk->tn", rounded, residual)
    expected += torch.einsum("tr,nr->tn", torch.einsum("tk,rk->tr", half, down).half().float(), up)
    assert torch.allclose(given, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_the_decomposition_beats_svd_and_rounding_on_new_tokens(precision):
    weight, inputs = layer()
    seen, fresh = inputs[:600], inputs[600:]
    wanted = fresh @ weight.T

    def error(outputs):
        return float((outputs - wanted).norm() / wanted.norm())

    branch = randomized_svd(weight, 16).dense()
    residual = rounded_weight(weight - branch, precision, search=0).dequantize()
    usual = error(rounded_inputs(fresh, precision) @ residual.T + fresh @ branch.T)
    made = split(weight, 16, precision, seen_of(seen))
    assert error(made.outputs(fresh, precision)) < 0.75 * usual
    assert made.error == pytest.approx(error(made.outputs(fresh, precision)), rel=0.3)


def test_a_better_factor_for_what_is_rounded_is_not_found_nearby():
    """The low-rank part is the best for its residual: any other nearby is worse on the calibration's inputs."""
    weight, inputs = layer(rows=32, columns=64)
    seen = Inputs([inputs.T @ inputs], len(inputs), inputs, inputs.abs().amax(dim=0))
    made = split(weight, 8, "int4", seen, dtype=torch.float32, smoothing=False)
    wanted = inputs @ weight.T

    def loss(up, down):
        given = linear(inputs, made.residual.dequantize(), made.smooth, down, up, "int4", torch.float32)
        return float((given - wanted).norm())

    least = loss(made.up, made.down)
    for seed in range(6):
        step = 0.05 * gaussian(32, 8, seed=20 + seed) * made.up.std()
        assert least < 1.002 * loss(made.up + step, made.down)
        assert least < 1.002 * loss(made.up - step, made.down)


def test_without_calibration_it_is_svd_and_rounding():
    weight, _ = layer()
    made = split(weight, 16, "int4")
    left = weight - made.up @ made.down
    assert torch.equal(made.smooth, torch.ones(128))
    assert made.error < float((rounded_weight(weight, "int4").dequantize() - weight).norm() / weight.norm())
    assert float((made.residual.dequantize() - left).norm() / left.norm()) < 0.12


def test_factors_fit_their_type():
    weight, inputs = layer()
    made = split(weight * 1e-4, 16, "int4", seen_of(inputs * 50))
    for factor in (made.up, made.down, made.smooth):
        assert torch.equal(factor, factor.half().float())
        assert torch.isfinite(factor).all()
    assert float((inputs * 50 / made.smooth).abs().max()) < 65504


@pytest.mark.parametrize("smoothing", [True, False])
def test_channels_that_are_always_rounded_to_zero_or_are_zero(smoothing):
    weight, inputs = layer()
    inputs[:, 5:40] *= 1e-4
    inputs[:, 64:128] = 0
    made = split(weight, 16, "int4", seen_of(inputs), smoothing=smoothing)
    assert made.error < 0.1
    assert torch.isfinite(made.residual.dequantize()).all()


def test_impossible_ranks_are_refused():
    weight, inputs = layer()
    with pytest.raises(UsageError):
        split(weight, 128, "int4", seen_of(inputs))
