"""SmoothQuant: factors against their closed form, and a search that never loses to s = 1."""

import pytest
import torch

from sdhub.compression.smoothquant import exponents, search_smoothing, smoothing_factors
from sdhub.core.errors import UsageError


def per_row(bits):
    def quantize(values):
        step = values.abs().amax(-1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
        return (values / step).round() * step

    return quantize


def layer(seed=0, outliers=4.0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(48, 64, generator=generator)
    spread = torch.exp(outliers * torch.rand(64, generator=generator))
    return weight, torch.randn(200, 64, generator=generator) * spread


def relative(outputs, given):
    return float((outputs - given).norm() / outputs.norm())


def test_factors_are_the_closed_form():
    inputs, weight = torch.tensor([4.0, 9.0, 1.0]), torch.tensor([16.0, 1.0, 81.0])
    expected = torch.tensor([2 / 4, 3 / 1, 1 / 9])
    assert torch.allclose(smoothing_factors(inputs, weight, 0.5, 0.5), expected)
    assert torch.equal(smoothing_factors(inputs, weight, 0, 0), torch.ones(3))


def test_silent_channels_keep_one_and_extremes_fit_float16():
    factors = smoothing_factors(torch.tensor([0.0, 1.0, 1e30, 1e-30]), torch.tensor([1.0, 0, 1e-9, 1e9]), 0.5, 0.5)
    assert factors[:2].tolist() == [1, 1]
    assert factors.half().isfinite().all() and factors.half().gt(0).all()


def test_the_grid_is_svdquants():
    pairs = exponents(20)
    assert len(pairs) == len(set(pairs)) == 39
    assert pairs[0] == (0, 0)
    assert all(beta == 0 or alpha + beta == pytest.approx(1) for alpha, beta in pairs)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("outliers", [0.0, 1.0, 5.0])
def test_never_worse_than_no_smoothing(seed, outliers):
    weight, tokens = layer(seed, outliers)
    result = search_smoothing(weight, tokens, per_row(4), quantize_input=per_row(4), finalists=1)
    outputs = tokens @ weight.T
    plain = relative(outputs, per_row(4)(tokens) @ per_row(4)(weight).T)
    mine = relative(outputs, per_row(4)(tokens / result.factors) @ per_row(4)(weight * result.factors).T)
    assert result.error <= result.unsmoothed == pytest.approx(plain, rel=1e-4)
    assert result.error == pytest.approx(mine, rel=1e-4)


def test_outlier_channels_are_smoothed_away():
    weight, tokens = layer(outliers=5.0)
    result = search_smoothing(weight, tokens, per_row(8), quantize_input=per_row(8))
    assert result.error < 0.7 * result.unsmoothed
    assert result.alpha > 0


def test_the_screened_choice_is_close_to_the_best_of_the_whole_grid():
    weight, tokens = layer(seed=9, outliers=3.0)
    few = search_smoothing(weight, tokens, per_row(4), quantize_input=per_row(4), finalists=4)
    all_of_them = search_smoothing(weight, tokens, per_row(4), quantize_input=per_row(4), finalists=39)
    assert len(all_of_them.scored) == 39
    assert all_of_them.error <= few.error <= 1.02 * all_of_them.error


def test_exact_quantizers_leave_the_layer_unsmoothed():
    weight, tokens = layer()
    result = search_smoothing(weight, tokens, lambda values: values, build=lambda smoothed, _: (weight, None))
    assert (result.alpha, result.beta, result.error) == (0, 0, 0)
    assert torch.equal(result.factors, torch.ones(64))


def test_a_low_rank_part_meets_inputs_that_are_not_quantized():
    weight, tokens = layer()

    def build(smoothed, factors):
        assert torch.allclose(smoothed, weight * factors)
        return torch.zeros_like(smoothed), smoothed

    result = search_smoothing(weight, tokens, per_row(2), quantize_input=per_row(2), build=build)
    assert result.error < 1e-5


def test_ranges_of_more_than_the_tokens_are_taken():
    weight, tokens = layer()
    wide = tokens.abs().amax(0) * torch.linspace(1, 10, 64)
    result = search_smoothing(weight, tokens, per_row(4), quantize_input=per_row(4), input_absmax=wide)
    expected = smoothing_factors(wide, weight.abs().amax(0), result.alpha, result.beta)
    assert torch.equal(result.factors, expected)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="do not fit"):
        search_smoothing(torch.ones(2, 3), torch.ones(4, 2), per_row(4))
    with pytest.raises(UsageError, match="tokens"):
        search_smoothing(torch.ones(2, 3), torch.full((4, 3), torch.inf), per_row(4))
