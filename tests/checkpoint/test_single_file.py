"""Single files: what they are, from headers alone. Shapes are those of the published checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdhub.checkpoint.checkpoint import Checkpoint, License, Source
from sdhub.checkpoint.inspect import inspect
from sdhub.core.errors import SourceError, UnsupportedError
from sdhub.demo import emoji_sd
from tests.checkpoint.ldm import write_ldm
from tests.checkpoint.tiny import Entry, safetensors_bytes, write

UNET = "model.diffusion_model."
TO_K = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
VAE: dict[str, Entry] = {"first_stage_model.decoder.conv_in.weight": ("F16", (2, 4, 3, 3))}
CLIP_L = "text_model.embeddings.token_embedding.weight"


def unet(width: int, channels: int = 4) -> dict[str, Entry]:
    return {
        f"{UNET}input_blocks.0.0.weight": ("F16", (2, channels, 3, 3)),
        TO_K: ("F16", (2, width)),
        f"{UNET}middle_block.0.in_layers.0.weight": ("F16", (2,)),
        "model_ema.decay": ("F32", ()),
    }


SD1: dict[str, Entry] = {
    **unet(768),
    **VAE,
    f"cond_stage_model.transformer.{CLIP_L}": ("F16", (4, 3)),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": ("I64", (1, 77)),
}
SD2: dict[str, Entry] = {
    **unet(1024),
    **VAE,
    "cond_stage_model.model.token_embedding.weight": ("F16", (4, 3)),
    "cond_stage_model.model.logit_scale": ("F16", ()),
}
SDXL: dict[str, Entry] = {
    **unet(2048),
    **VAE,
    f"conditioner.embedders.0.transformer.{CLIP_L}": ("F16", (4, 3)),
    "conditioner.embedders.1.model.token_embedding.weight": ("F16", (5, 3)),
}
REFINER: dict[str, Entry] = {
    **unet(1280),
    **VAE,
    "conditioner.embedders.0.model.token_embedding.weight": ("F16", (5, 3)),
}


def look(root: Path, tensors: dict[str, Entry], name: str = "m.safetensors", **metadata: str) -> Checkpoint:
    path = write(root / name, safetensors_bytes(tensors, metadata))
    return inspect(Source("file", str(path)))


@pytest.mark.parametrize(
    ("tensors", "name", "family", "pipeline", "prediction", "config"),
    [
        (SD1, "m", "sd1", "StableDiffusionPipeline", "epsilon", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        (SD2, "v2-1_768", "sd2", "StableDiffusionPipeline", "v_prediction", "stabilityai/stable-diffusion-2-1"),
        (SD2, "512-base", "sd2", "StableDiffusionPipeline", "epsilon", "stabilityai/stable-diffusion-2-1-base"),
        (SDXL, "m", "sdxl", "StableDiffusionXLPipeline", "epsilon", "stabilityai/stable-diffusion-xl-base-1.0"),
        (
            REFINER,
            "m",
            "sdxl-refiner",
            "StableDiffusionXLImg2ImgPipeline",
            "epsilon",
            "stabilityai/stable-diffusion-xl-refiner-1.0",
        ),
        (
            {**SD1, **unet(768, 9)},
            "m",
            "sd1",
            "StableDiffusionInpaintPipeline",
            "epsilon",
            "stable-diffusion-v1-5/stable-diffusion-inpainting",
        ),
    ],
)
def test_families(
    tensors: dict[str, Entry],
    name: str,
    family: str,
    pipeline: str,
    prediction: str,
    config: str,
    tmp_path: Path,
) -> None:
    found = look(tmp_path, tensors, f"{name}.safetensors")
    assert (found.family.name, found.pipeline, found.prediction_type) == (family, pipeline, prediction)
    assert (found.config, found.files, found.name) == (config, (f"{name}.safetensors",), name)
    assert ("inpainting" in found.traits) == ("Inpaint" in pipeline)


def test_components(tmp_path: Path) -> None:
    found = look(tmp_path, SD1)
    sizes = {part.name: (part.parameters, part.bytes, part.dtype) for part in found.components}
    assert sizes["unet"] == (72 + 1536 + 2, 2 * (72 + 1536 + 2), "float16")
    assert sizes["vae"] == (72, 144, "float16")
    assert sizes["text_encoder"][0] == 12
    assert found.component("unet").config == {"in_channels": 4, "cross_attention_dim": 768}
    found = look(tmp_path, SD2)
    assert found.component("text_encoder").parameters == 12
    found = look(tmp_path, SDXL)
    assert (found.component("text_encoder").parameters, found.component("text_encoder_2").parameters) == (12, 15)


def test_metadata(tmp_path: Path) -> None:
    said = {"modelspec.license": "CreativeML Open RAIL++-M", "modelspec.prediction_type": "epsilon"}
    found = look(tmp_path, SD2, **said)
    assert found.license == License("openrail++") and found.prediction_type == "epsilon"
    assert look(tmp_path, {**SDXL, "v_pred": ("F32", (0,))}).prediction_type == "v_prediction"
    assert look(tmp_path, SDXL, "sd_xl_turbo_1.0.safetensors").traits == {"no-safety-checker", "turbo"}
    assert look(tmp_path, SDXL).license is None


@pytest.mark.parametrize(
    ("tensors", "said", "hint"),
    [
        ({"lora_unet_down_blocks_0_proj_in.lora_up.weight": ("F16", (1,))}, "is a LoRA", "--lora"),
        ({"unet.mid_block.proj_in.lora_A.weight": ("F16", (1,))}, "is a LoRA", "--lora"),
        ({"unet.x.attn1.processor.to_q_lora.up.weight": ("F16", (1,))}, "is a LoRA", "--lora"),
        ({"text_encoder.x.lora_linear_layer.up.weight": ("F16", (1,))}, "is a LoRA", "--lora"),
        ({"lora_unet_x.hada_w1_a": ("F16", (1,))}, "LyCORIS", "--lora"),
        ({"lora_unet_x.lokr_w1": ("F16", (1,))}, "LyCORIS", "--lora"),
        ({"control_model.input_hint_block.0.weight": ("F16", (1,))}, "ControlNet", "full checkpoint"),
        ({"controlnet_cond_embedding.conv_in.weight": ("F16", (1,))}, "ControlNet", "full checkpoint"),
        ({"decoder.up.0.block.0.conv1.weight": ("F16", (1,))}, "VAE only", "full checkpoint"),
        ({"decoder.up_blocks.0.resnets.0.conv1.weight": ("F16", (1,))}, "VAE only", "full checkpoint"),
        (VAE, "VAE only", "full checkpoint"),
        (unet(768), "UNet only", "full checkpoint"),
        ({**unet(768), **VAE}, "no text encoder", "full checkpoint"),
        ({key: value for key, value in SD1.items() if key not in VAE}, "has no vae", "full checkpoint"),
        ({"down_blocks.0.resnets.0.conv1.weight": ("F16", (1,))}, "UNet only", "full checkpoint"),
        ({f"{CLIP_L}": ("F16", (1,))}, "text encoder only", "full checkpoint"),
        ({"ip_adapter.1.to_k_ip.weight": ("F16", (1,))}, "IP-Adapter", "full checkpoint"),
        ({"emb_params": ("F16", (1,))}, "textual inversion", "full checkpoint"),
        ({f"{UNET}joint_blocks.0.x": ("F16", (1,))}, "Stable Diffusion 3", "diffusers repository"),
        ({"double_blocks.0.img_attn.qkv.weight": ("F16", (1,))}, "FLUX", "diffusers repository"),
        ({"a": ("F16", (1,))}, "no checkpoint that sdhub knows", "full checkpoint"),
        ({}, "no checkpoint that sdhub knows", "full checkpoint"),
        ({**SD1, **unet(768, 8)}, "8 input channels", "inpainting 9"),
        ({**unet(768), **VAE, "conditioner.x": ("F16", (1,))}, "no text encoder", "full checkpoint"),
    ],
)
def test_what_is_no_checkpoint(tensors: dict[str, Entry], said: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=said) as caught:
        look(tmp_path, tensors)
    assert hint in caught.value.hint


def test_a_file_without_its_first_layer(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {key: value for key, value in SD1.items() if ".0.0." not in key}
    with pytest.raises(SourceError, match="lacks"):
        look(tmp_path, tensors)


def test_the_demo_as_one_file(tmp_path: Path) -> None:
    path = write_ldm(tmp_path / "emoji.safetensors")
    counts = {"unet": 16_717_060, "vae": 954_567, "text_encoder": 889_344}
    alone = inspect(Source("file", str(path)))
    assert alone.family.name == "sd1" and alone.component("unet").config["cross_attention_dim"] == 128
    assert {part.name: part.parameters for part in alone.components} == counts
    whole = inspect(Source("file", str(path), config=str(emoji_sd())))
    assert whole.config == str(emoji_sd()) and whole.size == 64
    assert {part.name: part.parameters for part in whole.components if part.parameters} == counts
    assert whole.component("scheduler").class_name == "DDIMScheduler"
    assert whole.component("unet").files == ("emoji.safetensors",)


def test_a_config_of_another_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", safetensors_bytes(SDXL))
    with pytest.raises(SourceError, match="of another kind"):
        inspect(Source("file", str(path), config=str(emoji_sd())))
    with pytest.raises(SourceError, match="brings its own configs"):
        inspect(Source("folder", str(emoji_sd()), config=str(emoji_sd())))
