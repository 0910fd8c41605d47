"""SDNQ's layers: read by hand from the description, and against rounding without calibration."""

import pytest
import torch

from sdhub.backends.sdnq.formats import Format, dequantize_layer, format_of, quantize_layer
from sdhub.core.errors import BuildError, UnsupportedError
from sdhub.recipes.recipe import Affine, Float, LowRank, Palette
from tests.backends.sdnq.sizes import stored_bytes

SHAPES = [(48, 64), (40, 96, 3, 3), (64, 128, 1, 1), (33, 50)]


def weight_of(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return weight * torch.exp(0.7 * torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator))


def inputs_of(shape, rows=600, seed=1):
    """Correlated rows of flattened inputs, a few of them large."""
    columns = weight_of(shape)[0].numel()
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -1.5, columns)
    return torch.randn(rows, columns, generator=generator) @ mix.T


def by_hand(tensors, shape, bits):
    """Element by element, as the format is described."""
    outputs, channels, *kernel = shape
    packed = tensors["weight"].view(torch.uint8).flatten().tolist()
    if bits == 4:
        codes = [nibble for byte in packed for nibble in (byte & 15, byte >> 4)]
    else:
        codes = tensors["weight"].flatten().tolist()
    codes = torch.tensor(codes, dtype=torch.float32).view(shape)
    scale = tensors["scale"].float()
    groups = scale.shape[1]
    result = torch.empty(shape)
    for output in range(outputs):
        for channel in range(channels):
            group = channel * groups // channels
            step = scale[output, group].reshape(kernel) if kernel else scale[output, group].reshape(())
            value = codes[output, channel] * step
            if "zero_point" in tensors:
                zero = tensors["zero_point"].float()[output, group]
                value = value + (zero.reshape(kernel) if kernel else zero.reshape(()))
            result[output, channel] = value
    if "svd_up" in tensors:
        result += (tensors["svd_up"].float() @ tensors["svd_down"].float()).view(shape)
    return result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "layout", [Format("uint4", 16, 8), Format("uint4", 0, 0), Format("int8", 0, 0), Format("uint8", 32, 4)]
)
def test_stored_layers_mean_what_the_format_says(shape, layout):
    weight = weight_of(shape)
    tensors, error = quantize_layer(weight, layout)
    read = dequantize_layer(tensors, layout, shape)
    assert torch.allclose(read, by_hand(tensors, shape, layout.bits), atol=1e-5, rtol=1e-5)
    assert float((read - weight).norm() / weight.norm()) == pytest.approx(error, rel=1e-3)
    assert error < (0.15 if layout.bits == 4 else 0.012)
    assert sum(each.numel() * each.element_size() for each in tensors.values()) == stored_bytes(shape, layout)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_calibration_lowers_the_error_of_outputs(shape):
    weight = weight_of(shape)
    inputs, fresh = inputs_of(shape, rows=1600).split([1300, 300])
    gram = inputs.T @ inputs

    def error(read):
        return float((fresh @ (read - weight).flatten(1).T).norm() / (fresh @ weight.flatten(1).T).norm())

    blind = dequantize_layer(quantize_layer(weight, Format("uint4", 16, 8))[0], Format("uint4", 16, 8), shape)
    layout = Format("uint4", 16, 8, gptq=True)
    tensors, told = quantize_layer(weight, layout, gram)
    seen = error(dequantize_layer(tensors, layout, shape))
    assert seen < 0.7 * error(blind)
    assert told < 1.05 * seen


def test_groups_divide_as_sdnq_divides_them():
    # 96 channels cannot have groups of 64: two groups of 48 would be smaller, so one of 96 stays.
    assert Format("uint4", 64).width(96) == 96
    assert Format("uint4", 64).width(128) == 64
    assert Format("uint4", 64).width(320) == 64
    assert Format("uint4", 64).width(200) == 100
    assert Format("uint4", 64).width(40) == 40
    assert Format("uint4", 0).width(320) == 320


def test_layers_without_the_rank_have_no_low_rank_part():
    tensors, _ = quantize_layer(weight_of((16, 64)), Format("uint4", 32, 32))
    assert set(tensors) == {"weight", "scale", "zero_point"}


def test_treatments():
    assert format_of(Float()) is None
    assert format_of(Affine(bits=8, symmetric=True)) == Format("int8")
    assert format_of(Affine(bits=4, group_size=64, rounding="gptq")) == Format("uint4", 64, 0, True)
    assert format_of(LowRank(rank=32, residual="uint4", group_size=64)) == Format("uint4", 64, 32)


@pytest.mark.parametrize(
    "treatment",
    [
        Palette(bits=4),
        Affine(bits=6),
        Affine(bits=8, activations="int8"),
        Float(dtype="float32"),
        LowRank(rank=32, residual="nvfp4"),
        LowRank(rank=32, residual="int4", activations="int4"),
        LowRank(rank=32, residual="uint4", smoothing=True),
    ],
)
def test_what_the_format_does_not_store_is_refused(treatment):
    with pytest.raises(UnsupportedError):
        format_of(treatment)


def test_tensors_that_do_not_fit_are_refused():
    tensors, _ = quantize_layer(weight_of((48, 64)), Format("uint4", 16, 8))
    with pytest.raises(BuildError, match="does not fit"):
        dequantize_layer(tensors, Format("uint4", 16, 8), (48, 128))
    with pytest.raises(BuildError, match="does not fit"):
        dequantize_layer({**tensors, "svd_up": tensors["svd_up"][:, :3]}, Format("uint4", 16, 8), (48, 64))
