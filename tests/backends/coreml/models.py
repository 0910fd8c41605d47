"""Small random models of the true architectures, each with what torch computes of a model's inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.checkpoint.tiny import PROJECTION_2, tiny_text_encoder, tiny_text_encoder_2, tiny_unet, tiny_vae

Inputs = Mapping[str, Tensor]
WORDS = 49408


def unet(**changes: Any) -> Any:
    settings = {
        "block_out_channels": (32, 64),
        "norm_num_groups": 8,
        "attention_head_dim": 2,  # which diffusers takes for the number of heads
        "cross_attention_dim": 48,
    }
    return randomize(tiny_unet(**{**settings, **changes}))


def shallow(**changes: Any) -> Any:
    """One resolution, for what does not depend on the architecture."""
    return unet(
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        **changes,
    )


def unet_xl(ids: int, **changes: Any) -> Any:
    return unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=PROJECTION_2 + 8 * ids,
        transformer_layers_per_block=(2, 1),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        **changes,
    )


def student() -> Any:
    """BK-SDM tiny: one layer a block, and no middle."""
    return unet(mid_block_type=None, layers_per_block=1, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))


def control_net(model: Any) -> Any:
    from diffusers import ControlNetModel

    return randomize(ControlNetModel.from_unet(model, conditioning_embedding_out_channels=(8, 8, 16, 16)))


IDS = {"vocab_size": WORDS, "bos_token_id": WORDS - 2, "eos_token_id": WORDS - 1}


def text(**changes: Any) -> Any:
    return randomize(tiny_text_encoder(**{**IDS, "num_hidden_layers": 3, **changes}))


def text_2(**changes: Any) -> Any:
    """The second text encoder of Stable Diffusion XL."""
    return randomize(tiny_text_encoder_2(**{**IDS, **changes}))


def vae() -> Any:
    return randomize(tiny_vae())


def tiny_autoencoder() -> Any:
    from diffusers import AutoencoderTiny

    widths, blocks = (8, 8), (1, 1)
    made = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    )
    return randomize(made)


def checker() -> Any:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = CLIPConfig(vision_config={**tower, "image_size": 32, "patch_size": 8}, projection_dim=16)
    return randomize(StableDiffusionSafetyChecker(config))


def draw(shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]], seed: int = 0) -> dict[str, Tensor]:
    """Inputs as pipelines give them: timesteps up to 999, ids of words with the end token among them."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, (shape, dtype) in shapes.items():
        if name == "timestep":
            value = torch.tensor([999.0, 421.0])[: shape[0]]
        elif name == "time_ids":
            value = torch.tensor([1024.0, 768, 0, 64, 512, 1024])[: shape[1]].expand(shape)
        elif name == "input_ids":
            value = torch.randint(WORDS - 2, shape, generator=generator).float()
            value[:, 0], value[:, 50:] = WORDS - 2, WORDS - 1
        else:
            value = torch.randn(shape, generator=generator)
        found[name] = value.to(dtype)
    return found


def run_unet(model: Any, given: Inputs) -> list[Tensor]:
    extra = sorted((name for name in given if name.startswith("additional")), key=lambda name: int(name[20:]))
    residuals = [given[name] for name in extra]
    return [
        model(
            given["sample"],
            given["timestep"],
            _states(given),
            added_cond_kwargs={name: given[name] for name in ("time_ids", "text_embeds") if name in given},
            down_block_additional_residuals=tuple(residuals[:-1]) or None,
            mid_block_additional_residual=residuals[-1] if residuals else None,
        ).sample
    ]


def run_lcm(model: Any, given: Inputs) -> list[Tensor]:
    from diffusers import LatentConsistencyModelPipeline

    guidance = torch.tensor([8.5 - 1.0] * 2)
    # The method uses nothing of the pipeline.
    waves = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, guidance, embedding_dim=24)
    return [model(given["sample"], given["timestep"], _states(given), timestep_cond=waves).sample]


def run_control_net(model: Any, given: Inputs) -> list[Tensor]:
    found = model(given["sample"], given["timestep"], _states(given), given["controlnet_cond"])
    return [*found.down_block_res_samples, found.mid_block_res_sample]


def run_text(model: Any, given: Inputs) -> list[Tensor]:
    found = model(given["input_ids"].long())
    return [found.last_hidden_state, found.pooler_output]


def run_text_xl(model: Any, given: Inputs) -> list[Tensor]:
    found = model(given["input_ids"].long(), output_hidden_states=True)
    return [found.hidden_states[-2], found[0] if hasattr(model, "text_projection") else found.pooler_output]


def run_decoder(model: Any, given: Inputs) -> list[Tensor]:
    return [model.decode(given["z"]).sample]


def run_encoder(model: Any, given: Inputs) -> list[Tensor]:
    return [model.encode(given["x"]).latent_dist.parameters]


def run_tiny_decoder(model: Any, given: Inputs) -> list[Tensor]:
    return [model.decode(given["z"] * 0.5).sample]


def run_tiny_encoder(model: Any, given: Inputs) -> list[Tensor]:
    latents = model.encode(given["x"]).latents / 0.5
    return [torch.cat([latents, torch.full_like(latents, -30)], dim=1)]


def run_checker(model: Any, given: Inputs) -> list[Tensor]:
    """As the class itself computes; its own way to judge pictures is in numpy and rounds scores."""
    pooled = model.vision_model(given["clip_input"])[1]
    towards = functools.partial(torch.nn.functional.cosine_similarity, dim=-1)
    seen = model.visual_projection(pooled)
    special = towards(seen[:, None], model.special_care_embeds[None]) - model.special_care_embeds_weights
    care = 0.01 * (special + given["adjustment"] > 0).any(dim=1).float()
    scores = towards(seen[:, None], model.concept_embeds[None]) - model.concept_embeds_weights + care[:, None]
    bad = (scores > 0).any(dim=1)
    return [given["images"] * ~bad[:, None, None, None], bad.float()[:, None, None, None], scores]


def snr(found: Tensor, wanted: Tensor) -> float:
    """Decibels; infinite where both are the same."""
    noise = (found.double() - wanted.double()).square().sum()
    return float("inf") if noise == 0 else float(10 * torch.log10(wanted.double().square().sum() / noise))


Run = Callable[[Any, Inputs], list[Tensor]]


def _states(given: Inputs) -> Tensor:
    return given["encoder_hidden_states"][:, :, 0].transpose(1, 2)


def randomize(model: Any) -> Any:
    """Parameters that matter: nothing is zero or one as libraries leave norms and last layers."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = 1 + 0.2 * noise if norm else 0.1 * noise if parameter.ndim == 1 else noise * fan_in**-0.5
    return model.eval()
