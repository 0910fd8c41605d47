"""Sensitivity against a network whose Jacobian is known; the choice of layers against a case by hand."""

import pytest
import torch

from sdhub.backends.openvino.calls import Calls, run
from sdhub.backends.openvino.sensitivity import Cost, most_sensitive, sensitivities
from sdhub.compression.affine import quantize
from sdhub.compression.calibration import collect
from sdhub.recipes.recipe import Affine


class Chain(torch.nn.Module):
    """Two linear layers of a denoiser whose output is one number, so that signs average nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(16, 8, bias=False)
        self.last = torch.nn.Linear(8, 1, bias=False)

    def forward(self, sample, timestep, added_cond_kwargs=None, return_dict=False):
        return (self.last(self.first(sample.flatten())),)


@pytest.fixture
def calls(tmp_path):
    calls = Calls(tmp_path)
    for number in range(3):
        sample = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(number))
        calls.add({"sample": sample, "timestep": torch.tensor(1.0)})
    return calls


def weight_error(layer, bits):
    weight = layer.weight.detach()
    return quantize(weight, bits).dequantize() - weight


def test_errors_of_weights_are_those_of_the_output(calls):
    net = Chain()
    costs = sensitivities(net, calls, {"first": Affine(bits=3), "last": Affine(bits=3)}, {})
    inputs = torch.stack([call["sample"].flatten() for call in calls])
    with torch.no_grad():
        hidden = inputs @ net.first.weight.T
        signal = (hidden @ net.last.weight.T).square().sum()
        first = (inputs @ weight_error(net.first, 3).T @ net.last.weight.T).square().sum()
        last = (hidden @ weight_error(net.last, 3).T).square().sum()
    assert costs["first"].error == pytest.approx(float(first / signal), rel=1e-4)
    assert costs["last"].error == pytest.approx(float(last / signal), rel=1e-4)
    assert (costs["first"].weights, costs["first"].multiplications) == (128, 128)


def test_rounded_inputs_cost_more_than_weights_alone(calls):
    wide = {name: Affine(bits=8, symmetric=True) for name in ("first", "last")}
    full = {name: each.model_copy(update={"activations": "int8"}) for name, each in wide.items()}
    net = Chain()
    statistics = collect(net, lambda _: [run(net, call) for call in calls], tokens=0)
    plain, rounded = (sensitivities(net, calls, each, statistics) for each in (wide, full))
    assert sum(each.error for each in rounded.values()) > sum(each.error for each in plain.values())


def test_only_what_is_asked_for_is_measured_and_nothing_is_left_behind(calls):
    net = Chain()
    assert set(sensitivities(net, calls, {"first": Affine(bits=8)}, {})) == {"first"}
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_spared_are_those_that_cost_most_for_what_they_are():
    costs = {
        "small": Cost(error=1.0, multiplications=10, weights=1),
        "large": Cost(error=2.0, multiplications=80, weights=8),
        "dull": Cost(error=0.01, multiplications=10, weights=1),
    }
    by_work = {
        share: most_sensitive(costs, share, by=lambda cost: cost.multiplications)
        for share in (0, 0.1, 0.25, 0.9, 1)
    }
    assert by_work == {
        0: frozenset(),
        0.1: {"small"},
        0.25: {"small", "dull"},
        0.9: {"small", "large"},
        1: {"small", "large", "dull"},
    }
