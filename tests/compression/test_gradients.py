"""Gram matrices of gradients against closed forms of linear networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdhub.compression.gradients import output_grams
from sdhub.errors import UsageError


def calls(shape: tuple[int, ...], count: int) -> list[tuple[tuple[torch.Tensor], dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    return [((torch.randn(shape, generator=generator),), {}) for _ in range(count)]


def test_a_linear_network_gives_the_gram_matrix_of_what_follows() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)).requires_grad_(False)
    found = output_grams(network, calls((500, 6), 8), ["0", "1"], probes=2)
    behind = network[1].weight
    rows = 500 * 8 * 2
    assert torch.allclose(found["0"] / rows, behind.T @ behind, atol=0.05)
    assert torch.allclose(found["1"] / rows, torch.eye(2), atol=0.05)


def test_convolutions_count_every_pixel() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)).requires_grad_(False)
    found = output_grams(network, calls((2, 3, 16, 16), 8), ["0"], probes=4)
    behind = network[1].weight.flatten(1)
    assert torch.allclose(found["0"] / (2 * 256 * 8 * 4), behind.T @ behind, atol=0.05)


def test_same_seed_same_bits_and_no_traces() -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 2)).requires_grad_(False)
    one, two = (output_grams(network, calls((9, 6), 2), ["0"], seed=3)["0"] for _ in range(2))
    assert torch.equal(one, two)
    assert not network[0]._forward_hooks
    assert network[0].weight.grad is None


def test_other_layers_are_refused_and_hooks_are_gone() -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.GELU())
    with pytest.raises(UsageError, match="1 is no Linear"):
        output_grams(network, calls((9, 6), 1), ["0", "1"])
    assert not network[0]._forward_hooks
