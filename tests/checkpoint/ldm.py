"""The built-in checkpoint in the original layout of latent-diffusion, by a key map of our own.

Written from the layout of CompVis' `openaimodel.py` and `model.py`; independent of diffusers' conversion.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sdhub.demo import emoji_sd

# UNet of two stages with one layer each: which module of diffusers is which block of the original.
BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _unet(key: str) -> str:
    block = next(block for block in BLOCKS if key.startswith(f"{block}."))
    rest = key[len(block) + 1 :]
    if ".resnets." in block:
        layer, _, kind = rest.rpartition(".")
        rest = f"{RESNET[layer]}.{kind}"
    return f"model.diffusion_model.{BLOCKS[block]}.{rest}"


def _vae(key: str, stages: int) -> str:
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{stages - 1 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{stages - 1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    for theirs, ours in ATTENTION.items():
        key = key.replace(f"mid_block.attentions.0.{theirs}.", f"mid.attn_1.{ours}.")
    return f"first_stage_model.{key}"


def write_ldm(path: Path, metadata: dict[str, str] | None = None) -> Path:
    """emoji-sd as one file. Attention of the VAE is 1x1 convolutions there."""
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Any] = {}
    for key, value in load_file(emoji_sd() / "unet/diffusion_pytorch_model.safetensors").items():
        tensors[_unet(key)] = value
    for key, value in load_file(emoji_sd() / "vae/diffusion_pytorch_model.safetensors").items():
        name = _vae(key, 3)
        conv = ".attn_1." in name and value.ndim == 2
        tensors[name] = value[:, :, None, None].clone() if conv else value
    for key, value in load_file(emoji_sd() / "text_encoder/model.safetensors").items():
        tensors[f"cond_stage_model.transformer.{key}"] = value
    save_file(tensors, path, metadata=metadata)
    return path
