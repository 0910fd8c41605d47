"""Settings of UNets and ControlNets that the re-implemented modules compute."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# Settings of a denoiser, and of a UNet alone, that the modules here compute.
USUAL: Mapping[str, Collection[Any]] = {
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "addition_embed_type": (None, "text_time"),
    "time_embedding_type": (None, "positional"),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "attention_type": (None, "default"),
    "dual_cross_attention": (None, False),
    "cross_attention_norm": (None,),
    "resnet_time_scale_shift": (None, "default"),
    "resnet_skip_time_act": (None, False),
    "mid_block_type": (None, "UNetMidBlock2DCrossAttn"),
}
USUAL_UNET: Mapping[str, Collection[Any]] = {"conv_in_kernel": (None, 3), "conv_out_kernel": (None, 3)}
BLOCKS = tuple(f"{cross}{way}Block2D" for cross in ("", "CrossAttn") for way in ("Down", "Up"))
