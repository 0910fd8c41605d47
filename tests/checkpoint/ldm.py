"""Checkpoints in the original layouts of latent-diffusion and generative-models, by key maps of our own.

Written from the layout of CompVis' `openaimodel.py` and `model.py`; independent of diffusers' conversion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
# Of the tiny Stable Diffusion XL: three stages of one layer each, the first without attention.
BLOCKS_XL = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "down_blocks.1.downsamplers.0.conv": "input_blocks.4.0.op",
    "down_blocks.2.resnets.0": "input_blocks.5.0",
    "down_blocks.2.attentions.0": "input_blocks.5.1",
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
    "up_blocks.1.upsamplers.0.conv": "output_blocks.3.2.conv",
    "up_blocks.2.resnets.0": "output_blocks.4.0",
    "up_blocks.2.resnets.1": "output_blocks.5.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
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


def _unet(key: str, blocks: Mapping[str, str] = BLOCKS) -> str:
    block = next(block for block in blocks if key.startswith(f"{block}."))
    rest = key[len(block) + 1 :]
    if ".resnets." in block:
        layer, _, kind = rest.rpartition(".")
        rest = f"{RESNET[layer]}.{kind}"
    return f"model.diffusion_model.{blocks[block]}.{rest}"


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


def sdxl_tensors(pipeline: Any) -> dict[str, Any]:
    """A tiny Stable Diffusion XL pipeline's weights by the names of one file."""
    tensors = {_unet(key, BLOCKS_XL): value for key, value in pipeline.unet.state_dict().items()}
    for key, value in pipeline.vae.state_dict().items():
        name = _vae(key, 2)
        conv = ".attn_1." in name and value.ndim == 2
        tensors[name] = value[:, :, None, None] if conv else value
    for key, value in pipeline.text_encoder.state_dict().items():
        name = f"text_model.{key.removeprefix('text_model.')}"
        tensors[f"conditioner.embedders.0.transformer.{name}"] = value
    tensors |= open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    return {name: value.clone() for name, value in tensors.items()}


def open_clip(encoder: Any, prefix: str) -> dict[str, Any]:
    """A CLIP text model by the names of open_clip's `transformer.py`, written by hand."""
    import torch

    state = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    made = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "logit_scale": torch.tensor(4.6),
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for layer in range(encoder.config.num_hidden_layers):
        for end in ("weight", "bias"):
            ours, theirs = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            for key, name in {**names, "self_attn.out_proj": "attn.out_proj"}.items():
                made[f"{theirs}.{name}.{end}"] = state[f"{ours}.{key}.{end}"]
            parts = [state[f"{ours}.self_attn.{each}_proj.{end}"] for each in "qkv"]
            made[f"{theirs}.attn.in_proj_{end}"] = torch.cat(parts)
    return {f"{prefix}{key}": value.clone() for key, value in made.items()}
