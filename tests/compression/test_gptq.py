"""GPTQ against brute force, Frantar's own recursion, and round-to-nearest."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdhub.compression.affine import quantize
from sdhub.compression.formats import nvfp4
from sdhub.compression.gptq import gptq, output_error
from sdhub.compression.gram import damped, divided, factor
from sdhub.compression.palettize import palettize
from sdhub.core.errors import UsageError

CODEBOOKS = {
    "palette": lambda w: palettize(w, 3),
    "grouped palette": lambda w: palettize(w, 3, group_size=5),
    "int8 palette": lambda w: palettize(w, 4, lut_dtype=torch.int8),
    "vector palette": lambda w: palettize(w, 4, cluster_dim=2, group_size=4),
    "grid": lambda w: quantize(w, 3),
    "grid per tensor": lambda w: quantize(w, 4, per="tensor", symmetric=True),
    "grouped grid": lambda w: quantize(w, 3, symmetric=True, group_size=16),
    "nvfp4": nvfp4,
}


def inputs(tokens, columns, seed=0):
    """Correlated rows of unequal energy."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    rows = torch.randn(tokens, columns, generator=generator) @ (mix + 0.3 * torch.eye(columns))
    return rows * torch.exp(0.7 * torch.randn(columns, generator=generator)) + 0.2


def gram_of(rows, block=None):
    """Diagonal blocks, in order, of the sum of xxᵀ."""
    return tuple(part.T @ part for part in rows.split(block or rows.shape[1], dim=1))


def weight_of(rows, columns, seed=1):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def energies(weight, codebook, matrix):
    off = (codebook.dequantize() - weight.float()).flatten(1).double()
    return ((off @ matrix.double()) * off).sum(dim=1)


def gptq_as_published(weight, table, matrix):
    """Frantar et al. 2022, algorithm 1: errors pushed through the Cholesky factor of the inverse."""
    open_weights, chosen = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(matrix.double()), upper=True)
    for column in range(weight.shape[1]):
        wanted = open_weights[:, column]
        value = table[(wanted[:, None] - table).abs().argmin(1)]
        chosen[:, column] = value
        pushed = (wanted - value) / upper[column, column]
        open_weights[:, column + 1 :] -= pushed[:, None] * upper[column, column + 1 :]
    return chosen


@pytest.mark.parametrize("name", CODEBOOKS)
@pytest.mark.parametrize("passes", [0, 2])
@pytest.mark.parametrize("order", ["energy", "natural"])
def test_no_row_is_worse_than_plain_and_the_whole_is_better(name, passes, order):
    weight, gram = weight_of(20, 48), gram_of(inputs(400, 48))[0]
    plain = CODEBOOKS[name](weight)
    better = gptq(weight, plain, gram, passes=passes, order=order, block=16)
    matrix = damped(gram, 0.01)
    before, after = energies(weight, plain, matrix), energies(weight, better, matrix)
    size = 2 if name == "vector palette" else 1
    assert bool((after.view(-1, size).sum(1) <= before.view(-1, size).sum(1) * (1 + 1e-4)).all())
    assert float(after.sum()) < 0.75 * float(before.sum())
    assert type(better) is type(plain) and better.dequantize().shape == weight.shape


@pytest.mark.parametrize("block", [1, 7, 128])
def test_natural_order_is_gptq_as_published(block):
    weight, gram = weight_of(6, 24), gram_of(inputs(200, 24))[0]
    palette = palettize(weight, 3)
    table = palette.table.view(-1).double()
    ours = gptq(weight, palette, gram, order="natural", block=block).dequantize().double()
    theirs = gptq_as_published(weight, table, damped(gram, 0.01))
    # Ours keeps a row's plain codes where they are better, which these rows do not need.
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_descent_ends_where_no_single_change_helps():
    weight, gram = weight_of(4, 10), gram_of(inputs(100, 10))[0]
    palette = palettize(weight, 2)
    table, matrix = palette.table.view(-1), damped(gram, 0.01)
    found = gptq(weight, palette, gram, passes=30)
    best = energies(weight, found, matrix)
    for column, entry in product(range(10), range(4)):
        changed = found.indices.clone()
        changed[:, column] = entry
        off = (table[changed.long()] - weight).double()
        assert bool((((off @ matrix.double()) * off).sum(1) >= best * (1 - 1e-5)).all())


def test_close_to_the_best_of_all_assignments():
    weight, gram = weight_of(8, 6), gram_of(inputs(60, 6))[0]
    palette = palettize(weight, 2)
    matrix, table = damped(gram, 0.01).double(), palette.table.view(-1).double()
    every = table[torch.cartesian_prod(*[torch.arange(4)] * 6)]
    best = torch.stack([(((every - row) @ matrix) * (every - row)).sum(1).min() for row in weight.double()])
    plain = energies(weight, palette, matrix)
    ours = energies(weight, gptq(weight, palette, gram, passes=5), matrix)
    assert float((ours - best).sum()) < 0.35 * float((plain - best).sum())


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(CODEBOOKS)), st.sampled_from([1, 3, 40]))
@settings(max_examples=40, deadline=None)
def test_never_worse_and_deterministic(seed, name, tokens):
    weight = weight_of(8, 16, seed)
    gram = gram_of(inputs(tokens, 16, seed))[0]
    plain = CODEBOOKS[name](weight)
    first, second = (gptq(weight, plain, gram) for _ in range(2))
    assert torch.equal(first.dequantize(), second.dequantize())
    matrix = damped(gram, 0.01)
    assert float(energies(weight, first, matrix).sum()) <= float(energies(weight, plain, matrix).sum()) * 1.0001


def test_convolutions_take_the_gram_matrix_of_unfolded_patches():
    conv = torch.nn.Conv2d(4, 8, 3, padding=1, bias=False)
    noise = torch.randn(3, 4, 13, 13, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.avg_pool2d(noise, 5, stride=1)
    patches = torch.nn.functional.unfold(images, 3, padding=1).movedim(1, -1).reshape(-1, 36)
    weight = conv.weight.detach()
    plain = palettize(weight, 2)
    better = gptq(weight, plain, gram_of(patches))

    def off(palette):
        restored = torch.nn.functional.conv2d(images, palette.dequantize() - weight, padding=1)
        return float(restored.norm())

    assert better.indices.shape == weight.shape
    assert off(better) < 0.8 * off(plain)
    whole = float(torch.nn.functional.conv2d(images, weight, padding=1).norm())
    measured = output_error(weight, plain.dequantize(), gram_of(patches))
    assert measured == pytest.approx(off(plain) / whole, rel=1e-3)


def test_diagonal_blocks_are_solved_by_themselves():
    weight, rows = weight_of(6, 40), inputs(300, 40)
    palette = palettize(weight, 3)
    blocks = gram_of(rows, 24)
    assert [block.shape[0] for block in blocks] == [24, 16]
    whole = gptq(weight, palette, blocks)
    for span, block in ((slice(0, 24), blocks[0]), (slice(24, 40), blocks[1])):
        part = type(palette)(palette.indices[:, span].contiguous(), palette.lut, palette.group_size)
        assert torch.equal(gptq(weight[:, span], part, block).indices, whole.indices[:, span])
    divided_up = divided(gram_of(rows)[0], 24)
    assert all(torch.allclose(one, two) for one, two in zip(divided_up, blocks, strict=True))


@pytest.mark.parametrize("gram", [torch.zeros(16, 16), torch.ones(16, 16), gram_of(inputs(1, 16))[0]])
def test_inputs_that_say_nothing_do_no_harm(gram):
    weight = weight_of(8, 16)
    palette = palettize(weight, 3)
    matrix = damped(gram, 0.01)
    assert float(energies(weight, gptq(weight, palette, gram), matrix).sum()) <= (
        float(energies(weight, palette, matrix).sum()) * 1.0001
    )


def test_factor_falls_back_to_float64_and_refuses_what_is_indefinite():
    rows = torch.randn(40, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scales = torch.logspace(0, -5, 30, dtype=torch.float64)
    hard = ((rows * scales).T @ (rows * scales)).float()
    hard[0, 0] += 100.0
    lower = factor(hard)
    assert torch.allclose(lower @ lower.T, hard, rtol=1e-3, atol=1e-3)
    with pytest.raises(UsageError, match="positive semidefinite"):
        factor(torch.diag(torch.tensor([1.0, -1.0])))


@pytest.mark.parametrize(
    ("weight", "gram", "said"),
    [
        (weight_of(4, 8), torch.eye(9), "9 wide"),
        (weight_of(4, 8), torch.zeros(8, 7), "not square"),
        (weight_of(4, 8), torch.full((8, 8), float("nan")), "NaN diagonal"),
        (weight_of(4, 8), -torch.eye(8), "negative"),
    ],
)
def test_wrong_gram_matrices_are_refused(weight, gram, said):
    with pytest.raises(UsageError, match=said):
        gptq(weight, palettize(weight, 2), gram)


def test_codes_of_another_weight_are_refused():
    with pytest.raises(UsageError, match="codes of shape"):
        gptq(weight_of(4, 8), palettize(weight_of(4, 9), 2), torch.eye(8))
    broken = weight_of(4, 8)
    palette = palettize(broken, 2)
    broken[0, 0] = float("nan")
    with pytest.raises(UsageError, match="infinite or NaN"):
        gptq(broken, palette, torch.eye(8))
    with pytest.raises(UsageError, match="no inputs"):
        gptq(torch.ones(4), palettize(torch.ones(4), 2), torch.eye(4))
