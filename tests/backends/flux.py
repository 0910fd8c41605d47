"""A FLUX pipeline of random weights, small and whole: two text encoders, a transformer in shards, a VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WIDTH, TEXT = 128, 64


def flux_folder(root: Path, levels: int = 2) -> Path:
    """Write it as diffusers does; `root` has to be new. `levels`: of the VAE, each of half the side before it."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    from tests.checkpoint.tiny import tiny_text_encoder, tokenizer

    torch.manual_seed(0)
    text_encoder = tiny_text_encoder(hidden_size=24, intermediate_size=96, num_attention_heads=3)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    transformer = FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=WIDTH // 2,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=text_encoder.config.hidden_size,
        in_channels=16,
        axes_dims_rope=(16, 24, 24),
        guidance_embeds=True,
    )
    for each in transformer.parameters():
        if each.ndim > 1:
            torch.nn.init.normal_(each, std=each.shape[1] ** -0.5)
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=32,
            d_model=TEXT,
            d_kv=16,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKL(
            latent_channels=4,
            block_out_channels=(32,) * levels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            shift_factor=0.1,
            scaling_factor=0.4,
        ),
        text_encoder=text_encoder,
        tokenizer=tokenizer(),
        text_encoder_2=encoder,
        tokenizer_2=T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=64),
        transformer=transformer,
    )
    pipeline.save_pretrained(root, max_shard_size="1MB")
    return root


def draw(pipeline: Any) -> Any:
    """Latents of two steps: (1, 64, 16) float32."""
    import torch

    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        "a red heart",
        num_inference_steps=2,
        guidance_scale=3.5,
        width=32,
        height=32,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
