"""Low-rank branches against the exact SVD and closed forms."""

import pytest
import torch

from sdhub.compression.lowrank import decompose, randomized_svd
from sdhub.core.errors import UsageError


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heavy_tailed(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tails = torch.randn(rows, columns, generator=generator) / (
        0.3 + torch.rand(rows, columns, generator=generator)
    )
    return tails * torch.exp(0.5 * torch.randn(rows, 1, generator=generator))


def decaying(rows, columns):
    left = torch.linalg.qr(gaussian(rows, columns, seed=1)).Q
    right = torch.linalg.qr(gaussian(columns, columns, seed=2)).Q
    return left * torch.arange(1, columns + 1) ** -0.5 @ right.T


def times_the_optimum(matrix, approximation):
    """Frobenius error over that of the exact truncation (Eckart and Young, 1936)."""
    tail = torch.linalg.svdvals(matrix.double())[len(approximation.singular_values) :]
    return float((matrix - approximation.dense()).double().norm() / tail.norm())


def round_to(bits):
    """Asymmetric rounding in groups of 32 columns."""

    def quantize(values):
        groups = values.reshape(values.shape[0], -1, 32)
        low = groups.amin(-1, keepdim=True)
        step = (groups.amax(-1, keepdim=True) - low).clamp(min=1e-12) / (2**bits - 1)
        return ((groups - low) / step).round().mul(step).add(low).reshape(values.shape)

    return quantize


def correlated_gram(columns, seed=3):
    mix = gaussian(columns, columns, seed=seed) * torch.logspace(0, -2, columns)
    return mix @ mix.T


@pytest.mark.parametrize(
    "matrix",
    [gaussian(384, 320), heavy_tailed(320, 512), decaying(400, 300)],
    ids=["flat", "heavy-tailed", "decaying"],
)
def test_error_is_within_a_thousandth_of_the_exact_truncation(matrix):
    approximation = randomized_svd(matrix, 16)
    assert 1 - 1e-6 <= times_the_optimum(matrix, approximation) <= 1.001
    values = torch.linalg.svdvals(matrix.double())
    assert torch.allclose(approximation.singular_values.double(), values[:16], rtol=0.02)


def test_a_matrix_of_the_rank_comes_back():
    matrix = gaussian(60, 8) @ gaussian(8, 90, seed=1)
    approximation = randomized_svd(matrix, 8)
    assert torch.allclose(approximation.dense(), matrix, atol=1e-4)


def test_full_rank_and_zero_matrices():
    square = gaussian(12, 12)
    assert torch.allclose(randomized_svd(square, 12).dense(), square, atol=1e-5)
    zero = randomized_svd(torch.zeros(9, 7), 3)
    assert zero.dense().abs().max() == 0


def test_factors_share_the_singular_values_evenly():
    branch = randomized_svd(gaussian(64, 48), 5)
    assert torch.allclose(branch.up.norm(dim=0), branch.down.norm(dim=1), rtol=1e-4)
    assert torch.allclose(branch.up.norm(dim=0) ** 2, branch.singular_values, rtol=1e-4)


def test_a_warm_start_needs_no_power_iterations():
    matrix = gaussian(300, 300)
    near = matrix + 0.02 * gaussian(300, 300, seed=5)
    start = randomized_svd(matrix, 16).subspace
    warm = times_the_optimum(near, randomized_svd(near, 16, power_iterations=0, start=start))
    cold = times_the_optimum(near, randomized_svd(near, 16, power_iterations=0))
    assert warm < 1.001 < cold


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type_gives_float32_and_the_same_bits_again(dtype):
    matrix = gaussian(40, 30).to(dtype)
    first, second = randomized_svd(matrix, 4), randomized_svd(matrix, 4)
    assert first.up.dtype == first.down.dtype == torch.float32
    assert torch.equal(first.up, second.up) and torch.equal(first.down, second.down)


@pytest.mark.parametrize("rank", [0, 8])
def test_ranks_that_cannot_be_are_refused(rank):
    with pytest.raises(UsageError, match=f"rank {rank}"):
        randomized_svd(torch.ones(7, 9), rank)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    matrix = torch.ones(4, 4)
    matrix[1, 2] = value
    with pytest.raises(UsageError, match="not finite"):
        decompose(matrix, 2, round_to(4))


def output_error(weight, approximation, gram):
    """tr(E G Eᵀ) / tr(W G Wᵀ), in float64, rooted."""
    error, whole = (weight - approximation).double(), weight.double()
    gram = gram.double()
    return float(((error @ gram * error).sum() / (whole @ gram * whole).sum()).sqrt())


def test_the_fit_is_the_closed_form_for_any_root_of_the_gram_matrix():
    weight, gram = gaussian(48, 64), correlated_gram(64)
    result = decompose(weight, 6, lambda target: torch.zeros_like(target), gram=gram, damping=1e-3, iterations=1)
    values, vectors = torch.linalg.eigh((gram / gram.diagonal().mean()).double() + 1e-3 * torch.eye(64))
    root = vectors * values.sqrt() @ vectors.T
    left, singular, right = torch.linalg.svd(weight.double() @ root)
    expected = (left[:, :6] * singular[:6]) @ right[:6] @ torch.linalg.inv(root)
    assert torch.allclose(result.low_rank.dense().double(), expected, atol=2e-3)


@pytest.mark.parametrize("form", ["none", "diagonal", "full", "blocks"])
def test_alternating_beats_one_svd_in_the_measure_it_is_given(form):
    weight, full = heavy_tailed(96, 128), correlated_gram(128)
    given, measure = {
        "none": (None, torch.eye(128)),
        "diagonal": (full.diagonal(), torch.diag(full.diagonal())),
        "full": (full, full),
        "blocks": ((full[:64, :64], full[64:, 64:]), torch.block_diag(full[:64, :64], full[64:, 64:])),
    }[form]
    quantize = round_to(4)
    result = decompose(weight, 8, quantize, gram=given, damping=1e-4)
    branch = randomized_svd(weight, 8).dense()
    once = output_error(weight, branch + quantize(weight - branch), measure)
    mine = output_error(weight, result.low_rank.dense() + result.residual, measure)
    assert mine < 0.95 * once
    assert result.error == pytest.approx(mine, rel=0.01)
    assert result.error == min(result.history) == decompose(weight, 8, quantize, gram=given, damping=1e-4).error
    assert torch.equal(quantize(result.target), result.residual)


def test_a_quantizer_that_only_gets_worse_keeps_the_first_round():
    weight, calls = gaussian(32, 32), []

    def worse(target):
        calls.append(target)
        return target * (1 - 0.1 * len(calls))

    result = decompose(weight, 2, worse, iterations=20, patience=2)
    assert len(result.history) == 3
    assert result.error == result.history[0]
    assert torch.equal(result.target, calls[0])


def test_factors_are_balanced_under_uneven_inputs():
    branch = decompose(gaussian(32, 64), 4, round_to(4), gram=torch.logspace(-6, 6, 64)).low_rank
    assert torch.allclose(branch.up.norm(dim=0), branch.down.norm(dim=1), rtol=1e-3)


@pytest.mark.parametrize("gram", [torch.ones(5), torch.ones(4, 5), (torch.eye(2), torch.eye(3))])
def test_a_gram_matrix_of_other_shape_is_refused(gram):
    with pytest.raises(UsageError, match="Gram matrix"):
        decompose(torch.eye(4), 1, round_to(4), gram=gram)


def test_a_silent_layer_and_a_zero_weight():
    weight = gaussian(32, 32)
    assert decompose(weight, 2, round_to(4), gram=torch.zeros(32, 32)).error < 0.2
    assert decompose(torch.zeros(32, 32), 2, round_to(4)).error == 0
