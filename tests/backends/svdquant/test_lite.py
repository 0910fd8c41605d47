"""nunchaku_lite: names, shapes and types of tensors, and layers that come back from them."""

import pytest
import torch

from sdhub.backends.svdquant.lite import (
    W4A4,
    W4A16,
    Format,
    check_tensors,
    decode,
    encode,
    format_of,
    quantization_config,
)
from sdhub.backends.svdquant.targets import layers_of, share, unet_linears
from sdhub.compression.observers import LayerStatistics
from sdhub.compression.svdquant import Inputs, split
from sdhub.core.errors import BuildError, RecipeError, UnsupportedError
from sdhub.recipes.recipe import Affine, ComponentRecipe, Float, LowRank, Palette

INT4 = LowRank(rank=16, residual="int4", group_size=64, activations="int4", smoothing=True, rounding="gptq")
NVFP4 = LowRank(rank=16, residual="nvfp4", group_size=16, activations="nvfp4")


def linear_layer(bias=True, outputs=128, inputs=256):
    torch.manual_seed(3)
    return torch.nn.Linear(inputs, outputs, bias=bias)


def statistics(inputs=256):
    rows = torch.randn(400, inputs, generator=torch.Generator().manual_seed(4)) * torch.logspace(0, 1, inputs)
    return LayerStatistics(*rows.aminmax(dim=0), rows.square().mean(dim=0), 400, rows[:200], (rows.T @ rows,), 400)


@pytest.mark.parametrize("treatment", [INT4, NVFP4])
@pytest.mark.parametrize("bias", [True, False])
def test_tensors_are_the_formats_and_come_back(treatment, bias):
    layer, layout, seen = linear_layer(bias), format_of(treatment), statistics()
    tensors, error = encode(layer, layout, seen, torch.float16)
    assert tensors["qweight"].shape == (128, 128)
    assert tensors["wscales"].shape == (256 // (16 if treatment is NVFP4 else 64), 128)
    assert tensors["proj_down"].shape == (256, 16)
    assert tensors["proj_up"].shape == (128, 16)
    assert ("bias" in tensors) == bias
    check_tensors(tensors, (128, 256), layout.precision, 16, torch.float16)
    assert error < 0.2

    module = torch.nn.Sequential(layer)
    config = quantization_config({"0": layout}, torch.float16)
    state = decode(module, config, {f"0.{name}": each for name, each in tensors.items()})
    assert state == {}
    inputs = seen.tokens.view(4, 50, 256)
    made = split(
        layer.weight,
        16,
        layout.precision,
        Inputs(seen.gram, 400, seen.tokens, seen.absmax),
        smoothing=layout.smoothing,
        use_gptq=layout.gptq,
    )
    expected = made.outputs(inputs.reshape(-1, 256), layout.precision)
    expected = expected if not bias else expected + layer.bias.half().float()
    assert torch.equal(module(inputs), expected.half().float().view(4, 50, 128))


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_inputs_of_which_most_are_all_but_silent(precision):
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(400, 256, generator=generator) * torch.logspace(-6, 1, 256)
    rows += rows[:, -1:] * torch.logspace(-6, 0, 256)
    weight = torch.randn(128, 256, generator=generator)
    made = split(weight, 16, precision, Inputs((rows.T @ rows,), 400, rows[:200], rows.abs().amax(dim=0)))
    wanted = rows @ weight.T
    ours, plain = (
        float((each.outputs(rows, precision) - wanted).norm() / wanted.norm())
        for each in (made, split(weight, 16, precision))
    )
    assert ours < 0.06
    assert ours < plain / 2


def test_w4a16_layers_come_back():
    layer = linear_layer()
    tensors, error = encode(layer, Format(W4A16), None, torch.float16)
    assert tensors["qweight"].shape == (32, 128)
    assert tensors["qweight"].dtype == torch.int32
    module = torch.nn.Sequential(layer)
    weight = layer.weight.detach().clone()
    config = quantization_config({"0": Format(W4A16)}, torch.float16)
    assert decode(module, config, {f"0.{name}": each for name, each in tensors.items()}) == {}
    assert float((module[0].weight - weight).norm() / weight.norm()) == pytest.approx(error, rel=0.05)


def test_the_document():
    layers = {"b": format_of(INT4), "a": format_of(INT4), "n": Format(W4A16)}
    assert quantization_config(layers, torch.bfloat16) == {
        "quant_method": "nunchaku_lite",
        "compute_dtype": "bfloat16",
        "svdq_w4a4": {"precision": "int4", "group_size": 64, "rank": 16, "targets": ["a", "b"]},
        "awq_w4a16": {"precision": "int4", "group_size": 64, "targets": ["n"]},
    }
    with pytest.raises(UnsupportedError, match="one type and one rank"):
        quantization_config({"a": format_of(INT4), "b": format_of(NVFP4)}, torch.float16)


@pytest.mark.parametrize(
    "change",
    [
        {"qweight": torch.zeros(128, 64, dtype=torch.int8)},
        {"wscales": torch.zeros(4, 128)},
        {"smooth_factor": torch.zeros(128).half()},
        {"wtscale": torch.ones(1).half()},
        {"proj_up": torch.zeros(128, 32).half()},
    ],
)
def test_other_tensors_are_refused(change):
    layer = linear_layer()
    tensors, _ = encode(layer, format_of(INT4), None, torch.float16)
    config = quantization_config({"0": format_of(INT4)}, torch.float16)
    with pytest.raises(BuildError, match="0 is broken"):
        decode(
            torch.nn.Sequential(layer), config, {f"0.{name}": each for name, each in {**tensors, **change}.items()}
        )


def test_targets_that_are_not_there_are_refused():
    config = quantization_config({"nowhere": format_of(INT4)}, torch.float16)
    with pytest.raises(BuildError, match="nowhere"):
        decode(torch.nn.Sequential(linear_layer()), config, {})


@pytest.mark.parametrize(
    "treatment",
    [
        Palette(bits=4),
        Affine(bits=8),
        Float(dtype="float32"),
        INT4.model_copy(update={"rank": 20}),
        INT4.model_copy(update={"rank": 0}),
        INT4.model_copy(update={"group_size": 32}),
        INT4.model_copy(update={"activations": "float"}),
        NVFP4.model_copy(update={"group_size": 64}),
        LowRank(rank=16, residual="uint4", group_size=64),
    ],
)
def test_what_no_kernel_does_is_refused(treatment):
    with pytest.raises(UnsupportedError):
        format_of(treatment)


def test_targets_of_the_built_in_checkpoint():
    from diffusers import UNet2DConditionModel

    from sdhub.demo import emoji_sd

    unet = UNet2DConditionModel.from_pretrained(emoji_sd() / "unet")
    chosen = layers_of(unet, ComponentRecipe(default=INT4))
    linears = [
        part for name, part in unet.named_modules() if isinstance(part, torch.nn.Linear) and "blocks.0." in name
    ]
    assert len(chosen) == 7 * 10
    assert all(".transformer_blocks.0." in name for name in chosen)
    assert linears
    sizes = sorted(
        (unet.get_submodule(name).out_features, unet.get_submodule(name).in_features) for name in chosen
    )
    assert sorted(unet_linears(unet.config)) == sizes
    with pytest.raises(RecipeError, match="multiples of 128"):
        layers_of(
            torch.nn.Sequential(linear_layer(outputs=320)), ComponentRecipe(default=Float(), layers={"0": INT4})
        )
    with pytest.raises(RecipeError, match="no linear layer conv_in"):
        layers_of(unet, ComponentRecipe(default=Float(), layers={"conv_in": INT4}))


SD15 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
}
SDXL = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
}


def test_shares_of_the_known_families():
    """Published: 110 of 160 layers and 27 % of SD 1.5, 700 of 700 and 85 % of SDXL."""
    layout = Format(W4A4, "int4", 32)
    taken = [size for size in unet_linears(SD15) if layout.takes(*size)]
    assert (len(taken), len(list(unet_linears(SD15)))) == (110, 160)
    assert share(SD15, 859_520_964, layout)[0] == pytest.approx(0.27, abs=0.01)
    assert len([size for size in unet_linears(SDXL) if layout.takes(*size)]) == 700
    part, bits = share(SDXL, 2_567_463_684, layout)
    assert part == pytest.approx(0.85, abs=0.01)
    assert bits / 8 + 2 * 2_567_463_684 * (1 - part) < 2.10e9


@pytest.mark.parametrize("treatment", [INT4, NVFP4])
def test_layers_compute_what_the_formats_description_says(treatment):
    """Beside functions written from the description alone, which downstream tests give to diffusers' modules."""
    from sdhub.backends.svdquant.reference import W4A4Linear, unpacked
    from tests.downstream import kernels_stand_in as kernels

    layout = format_of(treatment)
    nvfp4, size = layout.precision == "nvfp4", 16 if layout.precision == "nvfp4" else 64
    tensors, _ = encode(linear_layer(), layout, statistics(), torch.float16)
    inputs = statistics().tokens[:7].half()
    codes = torch.zeros(7, 128, dtype=torch.uint8)
    scales = torch.zeros(256 // size, 7, dtype=torch.float8_e4m3fn if nvfp4 else torch.float16)
    low, out = torch.zeros(7, 16), torch.zeros(7, 128, dtype=torch.float16)
    names = ("proj_down", "smooth_factor", "qweight", "wscales", "proj_up", "bias")
    down, smooth, weight, steps, up, bias = (tensors[name] for name in names)
    kernels.quantize(inputs, codes, scales, down, low, smooth, False, nvfp4)
    rest = [None] * 15
    rest[5], rest[9], rest[12] = bias, False, nvfp4
    rest[13], rest[14] = tensors.get("wtscale"), tensors.get("wcscales")
    kernels.gemm(codes, weight, out, None, scales, steps, None, None, low, up, *rest)
    given = W4A4Linear(unpacked(tensors, layout.precision), layout.precision, torch.float16)(inputs.float())
    torch.testing.assert_close(given, out.float(), atol=0.01, rtol=0.005)
