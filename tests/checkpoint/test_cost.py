"""What a call costs, beside what torch counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdhub.checkpoint.checkpoint import Component
from sdhub.checkpoint.cost import call_operations, call_seconds, decoding_operations, passes
from sdhub.checkpoint.resolve import resolve

UNETS = {
    "sd15": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 768,
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
    },
    "student": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "mid_block_type": None,
        "layers_per_block": 1,
        "cross_attention_dim": 768,
    },
}


def checkpoint_with(denoiser, family=None):
    """The built-in checkpoint with another denoiser, and a VAE of eight pixels a latent."""
    known = resolve("demo")
    vae = replace(known.component("vae"), config={"block_out_channels": (128, 256, 512, 512)})
    parts = [part for part in known.components if part.name not in ("vae", known.family.denoiser)]
    return replace(known, components=(denoiser, vae, *parts), family=family or known.family)


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("side", [256, 512])
def test_unets_cost_what_torch_counts(name, side):
    torch = pytest.importorskip("torch")
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    config = UNETS[name]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        inputs = (
            torch.zeros(1, 4, side // 8, side // 8),
            torch.tensor(1.0),
            torch.zeros(1, 77, config["cross_attention_dim"]),
        )
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        unet(*inputs)
    checkpoint = checkpoint_with(Component("unet", "diffusers", "UNet2DConditionModel", dict(unet.config)))
    assert call_operations(checkpoint, side, side) == pytest.approx(counted.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("kind", ["sd3", "flux", "sana"])
def test_transformers_cost_what_torch_counts(kind):
    torch = pytest.importorskip("torch")
    from diffusers import FluxTransformer2DModel, SanaTransformer2DModel, SD3Transformer2DModel
    from torch.utils.flop_counter import FlopCounterMode

    from sdhub.checkpoint.families import FAMILIES

    with torch.device("meta"):
        if kind == "sd3":
            model = SD3Transformer2DModel(
                num_layers=4,
                attention_head_dim=64,
                num_attention_heads=24,
                caption_projection_dim=1536,
                pos_embed_max_size=192,
            )
            given = torch.zeros(1, 16, 128, 128), torch.zeros(1, 333, 4096), torch.zeros(1, 2048), torch.zeros(1)
        elif kind == "flux":
            model = FluxTransformer2DModel(num_layers=2, num_single_layers=3, guidance_embeds=True)
            given = (
                *(torch.zeros(1, 4096, 64), torch.zeros(1, 512, 4096), torch.zeros(1, 768), torch.zeros(1)),
                *(torch.zeros(4096, 3), torch.zeros(512, 3), torch.zeros(1)),
            )
        else:
            model = SanaTransformer2DModel(num_layers=4)
            given = torch.zeros(1, 32, 32, 32), torch.zeros(1, 300, 2304), torch.zeros(1)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(*given)
    part = Component("transformer", "diffusers", type(model).__name__, dict(model.config))
    checkpoint = checkpoint_with(part, FAMILIES[kind])
    assert call_operations(checkpoint, 1024, 1024) == pytest.approx(counted.get_total_flops(), rel=0.1)


def test_decoding_costs_what_torch_counts():
    torch = pytest.importorskip("torch")
    from diffusers import AutoencoderKL
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        latents = torch.zeros(1, 4, 64, 64)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        vae.decode(latents)
    checkpoint = checkpoint_with(resolve("demo").component("unet"))
    assert decoding_operations(checkpoint, 512, 512) == pytest.approx(counted.get_total_flops(), rel=0.05)


def test_a_larger_picture_takes_longer_and_guidance_twice():
    checkpoint = resolve("demo")
    assert call_seconds(checkpoint, 128, 128) > call_seconds(checkpoint, 64, 64) > 0
    assert [passes(checkpoint, guidance) for guidance in (0, 1, 4)] == [1, 1, 2]


@pytest.mark.parametrize("odd", [[], [[]], "many", None, True, -3, 0, [[1, [2]]], {"a": 1}, 1e9])
def test_configs_that_make_no_model_have_some_cost(odd):
    config = {**UNETS["sdxl"], "in_channels": odd, "layers_per_block": odd, "cross_attention_dim": odd}
    for name in ("block_out_channels", "down_block_types", "transformer_layers_per_block"):
        unet = Component("unet", "diffusers", "UNet2DConditionModel", {**config, name: odd})
        assert call_operations(checkpoint_with(unet), 512, 512) > 0
