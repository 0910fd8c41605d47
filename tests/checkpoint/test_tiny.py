"""The tiny checkpoints keep the relations of the true ones: what differs there differs here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.backends.flux import flux_folder
from tests.checkpoint import test_load as tiny

# From the configs of the published repositories.
SDXL = {
    "width": 768,
    "depth": 12,
    "heads": 12,
    "intermediate": 3072,
    "width_2": 1280,
    "depth_2": 32,
    "heads_2": 20,
    "intermediate_2": 5120,
    "projection_2": 1280,
    "context": 2048,
    "added": 2816,
    "waves": 256,
    "stages": (320, 640, 1280),
    "depths": (1, 2, 10),
    "heads of stages": (5, 10, 20),
    "autoencoder": (128, 512),
    "latents": 4,
}
REFINER = {
    "width_2": 1280,
    "depth_2": 32,
    "heads_2": 20,
    "projection_2": 1280,
    "context": 1280,
    "added": 2560,
    "latents": 4,
}
SD2 = {
    "width": 1024,
    "depth": 23,
    "heads": 16,
    "intermediate": 4096,
    "context": 1024,
    "stages": (320, 1280),
    "latents": 4,
}
FLUX = {
    "width": 768,
    "width_2": 4096,
    "heads_2": 64,
    "intermediate_2": 10240,
    "inner": 3072,
    "heads": 24,
    "joint": 4096,
    "pooled": 768,
    "packed": 64,
    "latents": 16,
    "blocks": 19,
    "single blocks": 38,
}


def encoder(module: Any, suffix: str = "") -> dict[str, Any]:
    config = module.config
    return {
        f"width{suffix}": config.hidden_size,
        f"depth{suffix}": config.num_hidden_layers,
        f"heads{suffix}": config.num_attention_heads,
        f"intermediate{suffix}": config.intermediate_size,
        f"projection{suffix}": config.projection_dim,
    }


def of_unet(pipeline: Any) -> dict[str, Any]:
    config = pipeline.unet.config
    found = {
        "context": config.cross_attention_dim,
        "added": config.projection_class_embeddings_input_dim,
        "waves": config.addition_time_embed_dim,
        "stages": tuple(config.block_out_channels),
        "depths": config.transformer_layers_per_block,
        "heads of stages": config.attention_head_dim,
        "autoencoder": tuple(pipeline.vae.config.block_out_channels),
        "latents": pipeline.vae.config.latent_channels,
    }
    if pipeline.text_encoder is not None:
        found |= encoder(pipeline.text_encoder)
    if hasattr(pipeline, "text_encoder_2"):
        found |= encoder(pipeline.text_encoder_2, "_2")
    return found


def of_flux(root: Path) -> dict[str, Any]:
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(flux_folder(root / "flux"))
    config, second = pipeline.transformer.config, pipeline.text_encoder_2.config
    return {
        "width": pipeline.text_encoder.config.hidden_size,
        "width_2": second.d_model,
        "heads_2": second.num_heads,
        "intermediate_2": second.d_ff,
        "inner": pipeline.transformer.inner_dim,
        "heads": config.num_attention_heads,
        "joint": config.joint_attention_dim,
        "pooled": config.pooled_projection_dim,
        "packed": config.in_channels,
        "latents": pipeline.vae.config.latent_channels,
        "blocks": config.num_layers,
        "single blocks": config.num_single_layers,
    }


def numbers(dimensions: Mapping[str, Any]) -> dict[str, int]:
    """Of stages each by itself."""
    found = {}
    for name, value in dimensions.items():
        each = value if isinstance(value, tuple) else (value,)
        found |= {f"{name}.{index}" if len(each) > 1 else name: number for index, number in enumerate(each)}
    return found


@pytest.mark.parametrize(
    ("true", "make"),
    [
        pytest.param(SDXL, lambda _: of_unet(tiny.sdxl()), id="SDXL"),
        pytest.param(REFINER, lambda _: of_unet(tiny.refiner()), id="refiner"),
        pytest.param(SD2, lambda _: of_unet(tiny.sd2()), id="SD 2"),
        pytest.param(FLUX, of_flux, id="FLUX"),
    ],
)
def test_what_differs_in_the_true_one_differs_in_the_tiny_one(
    true: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]], tmp_path: Path
) -> None:
    made = make(tmp_path)
    wanted, found = numbers(true), numbers({name: made[name] for name in true})
    assert set(wanted) == set(found)
    alike = [
        (one, other)
        for one, other in combinations(wanted, 2)
        if wanted[one] != wanted[other] and found[one] == found[other] and _comparable(one, other)
    ]
    assert not alike
    assert all((wanted[one] < wanted[other]) == (found[one] < found[other]) for one, other in _ordered(wanted))


WIDTHS = (
    "width",
    "projection",
    "context",
    "added",
    "stages",
    "inner",
    "joint",
    "pooled",
    "packed",
    "intermediate",
)


def _comparable(one: str, other: str) -> bool:
    """Widths are taken for one another, and counts of one thing in two places."""
    if one.startswith(WIDTHS) and other.startswith(WIDTHS):
        return True
    return one.rstrip("_2.01") == other.rstrip("_2.01")


def _ordered(wanted: Mapping[str, int]) -> list[tuple[str, str]]:
    return [
        pair
        for pair in combinations(wanted, 2)
        if pair[0].rstrip("_2.01") == pair[1].rstrip("_2.01") and wanted[pair[0]] != wanted[pair[1]]
    ]


def test_the_text_encoders_of_sdxl_are_concatenated() -> None:
    made = of_unet(tiny.sdxl())
    assert made["context"] == made["width"] + made["width_2"] == 40
    assert made["added"] == made["projection_2"] + 6 * made["waves"]
    assert of_unet(tiny.refiner())["context"] == made["width_2"]
