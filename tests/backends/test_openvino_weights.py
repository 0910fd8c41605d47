"""What recipes do to OpenVINO graphs, on a small network, judged by what OpenVINO then computes."""

import itertools
from collections import Counter

import numpy as np
import openvino
import pytest
import torch

from sdhub.backends.openvino import constants, frequencies, graph
from sdhub.backends.openvino.quantize import compress
from sdhub.compression import affine
from sdhub.compression.calibration import collect
from sdhub.compression.observers import LayerStatistics
from sdhub.core.errors import BuildError
from sdhub.recipes.recipe import Affine, ComponentRecipe, Float
from tests.backends.openvino_graphs import integer_products
from tests.exact import EXACT

KIND = {True: "i4", False: "u4"}


class Net(torch.nn.Module):
    """A convolution and two products, on inputs called as a denoiser's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(4, 64, 3, padding=1)
        self.up = torch.nn.Linear(64, 128)
        self.down = torch.nn.Linear(128, 64)

    def forward(self, sample):
        hidden = torch.nn.functional.silu(self.conv(sample)).flatten(2).transpose(1, 2)
        return self.down(torch.nn.functional.silu(self.up(hidden)))


@pytest.fixture(scope="module")
def net():
    return Net().eval()


@pytest.fixture
def folder(net, tmp_path):
    model = openvino.convert_model(net, example_input=torch.zeros(1, 4, 8, 8))
    model.inputs[0].get_tensor().set_names({"sample"})
    folder = tmp_path / "unet"
    folder.mkdir()
    openvino.save_model(model, folder / graph.MODEL, compress_to_fp16=True)
    return folder


def samples(count=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 4, 8, 8, generator=generator) for _ in range(count)]


def seen(net, calls):
    def drive(_):
        for call in calls:
            net(call)

    return collect(net, drive, tokens=0)


def drawn(folder, sample):
    return openvino.Core().compile_model(folder / graph.MODEL, "CPU", EXACT)(sample.numpy())[0]


@pytest.mark.parametrize(
    ("symmetric", "group_size", "bits"), list(itertools.product((True, False), (0, 16), (4, 8)))
)
def test_a_grid_in_the_graph_is_the_weight_that_it_stands_for(net, folder, symmetric, group_size, bits):
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    model = graph.read(folder)
    expected = Net().eval()
    expected.load_state_dict(net.half().float().state_dict())
    for layer, operation in graph.layers(model).items():
        columns = expected.get_submodule(layer).weight[0].numel()
        group = group_size if group_size and columns % group_size == 0 else None
        grid = affine.quantize(constants.weight_of(operation), bits, symmetric=symmetric, group_size=group)
        constants.put(operation, grid)
        scale = grid.scale.half().float()
        zero = 0 if grid.zero_point is None else grid.zero_point[..., None]
        codes = grid.codes.float().view(grid.codes.shape[0], -1, grid.group_size)
        with torch.no_grad():
            target = expected.get_submodule(layer).weight
            target.copy_(((codes - zero) * scale[..., None]).view(target.shape))
    graph.save(model, folder)
    assert graph.weight_types(graph.read(folder)) == {f"{'i' if symmetric else 'u'}{bits}": 3}
    with torch.no_grad():
        wanted = expected(sample).numpy()
    np.testing.assert_allclose(drawn(folder, sample), wanted, atol=2e-3)


def test_four_bit_codes_are_packed_low_half_first(folder):
    model = graph.read(folder)
    operation = graph.layers(model)["down"]
    codes = torch.arange(64 * 128, dtype=torch.uint8).view(64, 128) % 16
    ones = torch.ones(64, 1)
    constants.put(operation, affine.Grid(codes, ones, 0 * ones, bits=4, group_size=128))
    packed = graph.constant_of(operation)
    assert packed.get_byte_size() == codes.numel() // 2
    assert bytes(np.asarray(packed.data).reshape(-1).view(np.uint8)[:3]) == bytes([0x10, 0x32, 0x54])


def test_each_layer_gets_what_the_recipe_says(folder):
    layers = {"conv": Float(), "down": Affine(bits=8, symmetric=True)}
    compress(folder, ComponentRecipe(default=Affine(bits=4, group_size=32), layers=layers))
    model = graph.read(folder)
    kinds = {
        layer: graph.constant_of(each).get_output_element_type(0).get_type_name()
        for layer, each in graph.layers(model).items()
    }
    assert kinds == {"conv": "f16", "up": "u4", "down": "i8"}
    assert integer_products(model) == set()


FULL = ComponentRecipe(default=Affine(bits=8, activations="int8", smoothing=0.5))
HYBRID = ComponentRecipe(default=Affine(bits=8, activations="hybrid"))


def test_spared_layers_keep_eight_bits_and_float_inputs(net, folder):
    compress(folder, FULL, higher_precision={"conv"}, statistics=seen(net, samples()))
    model = graph.read(folder)
    assert integer_products(model) == {"down", "up"}
    assert graph.weight_types(model) == Counter({"i8": 2, "u8": 1})


def test_hybrid_rounds_the_inputs_of_convolutions_alone(net, folder):
    compress(folder, HYBRID, statistics=seen(net, samples()))
    model = graph.read(folder)
    assert integer_products(model) == {"conv"}
    assert graph.weight_types(model) == Counter({"u8": 2, "i8": 1})


def test_integer_arithmetic_is_near_that_of_floats(net, folder):
    calls = samples()
    with torch.no_grad():
        expected = net(calls[0]).numpy()
    compress(folder, FULL, statistics=seen(net, calls))
    off = drawn(folder, calls[0]) - expected
    assert np.square(off).mean() < 4e-4 * np.square(expected).mean()


def test_integer_weights_use_half_of_their_range(net, folder):
    """Two products of an unsigned and a signed byte fit into 16 bits only so: 2 · 255 · 64 < 2^15."""
    compress(folder, FULL, statistics=seen(net, samples()))
    for operation in graph.layers(graph.read(folder)).values():
        assert 60 <= np.abs(graph.constant_of(operation).data.astype(int)).max() <= 64


def levels(operation):
    """The least and the greatest level of a layer's inputs."""
    rounding = operation.input_value(0).get_node()
    return [float(_constant_folded(rounding.input_value(index))) for index in (1, 2)]


def test_the_range_of_an_input_is_the_widest_of_all_calls_and_holds_zero(net, folder):
    calls = [*samples(3), torch.full((1, 4, 8, 8), 9.0)]
    compress(folder, HYBRID, statistics=seen(net, calls))
    low, high = levels(graph.layers(graph.read(folder))["conv"])
    assert high == pytest.approx(9.0, rel=0.02)
    zero = -low * 255 / (high - low)
    assert zero == pytest.approx(round(zero), abs=1e-3)


def test_smoothing_evens_out_channels(net, folder):
    """One channel a hundred times louder than the others costs little where inputs are smoothed."""
    loud = Net().eval()
    with torch.no_grad():
        loud.up.weight[7] *= 100
        loud.up.bias[7] *= 100
        loud.down.weight[:, 7] /= 100
    errors = []
    for smoothing in (0.0, 0.5):
        model = openvino.convert_model(loud, example_input=torch.zeros(1, 4, 8, 8))
        openvino.save_model(model, folder / graph.MODEL)
        calls = samples()
        full = Affine(bits=8, activations="int8", smoothing=smoothing)
        compress(folder, ComponentRecipe(default=Float(), layers={"down": full}), statistics=seen(loud, calls))
        with torch.no_grad():
            expected = loud(calls[0]).numpy()
        errors.append(float(np.square(drawn(folder, calls[0]) - expected).mean()))
    assert errors[1] < 0.05 * errors[0]


class Shared(torch.nn.Module):
    """Two products of one input, of tokens or transposed to them, and a convolution of what was made larger."""

    def __init__(self, transposed):
        super().__init__()
        self.transposed = transposed
        torch.manual_seed(0)
        self.to_k = torch.nn.Linear(16, 8)
        self.to_v = torch.nn.Linear(16, 8)
        self.conv = torch.nn.Conv2d(8, 8, 3)

    def forward(self, sample):
        rows = sample.transpose(1, 2) if self.transposed else sample
        image = torch.cat([self.to_k(rows), self.to_v(rows)], dim=1).transpose(1, 2).reshape(-1, 8, 6, 4)
        return self.conv(torch.nn.functional.interpolate(image, scale_factor=2.0, mode="nearest"))


@pytest.mark.parametrize("transposed", [False, True])
def test_one_input_is_rounded_once_and_before_it_is_moved(tmp_path, transposed):
    net = Shared(transposed).eval()
    loudness = torch.logspace(-1, 1, 16)
    tokens = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(5)) * loudness
    calls = [tokens.transpose(1, 2).contiguous() if transposed else tokens]
    openvino.save_model(openvino.convert_model(net, example_input=calls[0]), tmp_path / graph.MODEL)
    with torch.no_grad():
        expected = net(calls[0]).numpy()
    compress(tmp_path, FULL, statistics=seen(net, calls))
    model = graph.read(tmp_path)
    assert integer_products(model) == {"conv", "to_k", "to_v"}
    roundings = [each for each in model.get_ops() if each.get_type_name() == "FakeQuantize"]
    assert len(roundings) == 2
    conv = graph.layers(model)["conv"].input_value(0).get_node()
    assert conv.get_type_name() == "Interpolate"
    off = drawn(tmp_path, calls[0]) - expected
    assert np.square(off).mean() < 1e-3 * np.square(expected).mean()


@pytest.mark.parametrize("shift", [0, 1])
def test_timesteps_are_embedded_as_32_bits_would(tmp_path, shift):
    from diffusers.models.embeddings import Timesteps

    embedding = Timesteps(64, flip_sin_to_cos=True, downscale_freq_shift=shift)
    model = openvino.convert_model(embedding, example_input=torch.tensor([1.0]))
    openvino.save_model(model, tmp_path / graph.MODEL, compress_to_fp16=True)
    times = torch.tensor([999.0, 617.0, 3000.0])
    expected = embedding(times).numpy()
    assert np.abs(drawn(tmp_path, times) - expected).max() > 0.1
    model = graph.read(tmp_path)
    assert frequencies.restore(model) == 1
    graph.save(model, tmp_path)
    np.testing.assert_allclose(drawn(tmp_path, times), expected, atol=1e-3)


def test_fractions_of_timesteps_come_through(tmp_path):
    from diffusers.models.embeddings import Timesteps

    embedding = Timesteps(64, flip_sin_to_cos=True, downscale_freq_shift=0)
    model = openvino.convert_model(embedding, example_input=torch.tensor([1]))
    model.inputs[0].get_tensor().set_names({"timestep"})
    openvino.save_model(model, tmp_path / graph.MODEL, compress_to_fp16=False)
    for times in (torch.tensor([617.43, 0.37]), torch.tensor([617, 3])):
        expected = embedding(times).numpy()
        model = graph.read(tmp_path)
        if times.is_floating_point():
            assert np.abs(drawn(tmp_path, times) - expected).max() > 0.3
        assert graph.take_fractions(model, "timestep")
        assert not graph.take_fractions(model, "timestep")
        compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        np.testing.assert_allclose(compiled([times])[0], expected, atol=2e-4)


def test_activations_are_not_rounded_without_calibration(folder):
    with pytest.raises(BuildError, match="calibration"):
        compress(folder, ComponentRecipe(default=Affine(bits=8, activations="int8")))


def test_gptq_lowers_the_error_of_the_output(net, folder):
    rows = torch.randn(512, 128, generator=torch.Generator().manual_seed(3)) @ torch.randn(128, 128)
    zero = torch.zeros(128)
    known = LayerStatistics(zero, zero, zero, 512, torch.empty(0, 128), (rows.T @ rows,), 512)
    errors = []
    for rounding, statistics in (("round_to_nearest", {}), ("gptq", {"down": known})):
        copy = folder.parent / rounding
        copy.mkdir()
        for path in folder.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        layers = {"down": Affine(bits=4, group_size=32, rounding=rounding)}
        compress(copy, ComponentRecipe(default=Float(), layers=layers), statistics=statistics)
        operation = graph.layers(graph.read(copy))["down"]
        weight = _constant_folded(operation.input_value(graph.WEIGHT))
        off = rows @ (torch.from_numpy(weight) - net.down.weight.detach().half().float()).T
        errors.append(float(off.norm()))
    assert errors[1] < 0.7 * errors[0]


def _constant_folded(output):
    model = openvino.Model([output], [], "weight")
    return openvino.Core().compile_model(model, "CPU", EXACT)([])[0]
