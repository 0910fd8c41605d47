"""One `.safetensors` file in the original (LDM) layout, told from its header alone.

Layouts: CompVis latent-diffusion and Stability's generative-models, as diffusers' `from_single_file` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sdhub.checkpoint.checkpoint import Component
from sdhub.checkpoint.documents import shown
from sdhub.checkpoint.families import FAMILIES, INPAINTING, Family
from sdhub.checkpoint.headers import Header, Tensor
from sdhub.checkpoint.kinds import refuse_part
from sdhub.checkpoint.weights import measure
from sdhub.errors import SourceError, UnsupportedError

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP_L = "cond_stage_model.transformer."
CLIP_H = "cond_stage_model.model."
CLIP_L_XL = "conditioner.embedders.0.transformer."
CLIP_G_XL = "conditioner.embedders.1.model."
CLIP_G_REFINER = "conditioner.embedders.0.model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
CROSS_ATTENTION = re.compile(re.escape(UNET) + r".*\.attn2\.to_k\.weight")
NOT_PARAMETERS = ("logit_scale",)


@dataclass(frozen=True)
class Layout:
    """Where the parts of a family lie in the file, and the repositories whose configs fit it."""

    pipeline: str
    text_encoders: Mapping[str, tuple[str, str]]
    config: str
    inpainting: str = ""


LAYOUTS: Mapping[str, Layout] = {
    "sd1": Layout(
        "StableDiffusionPipeline",
        {"text_encoder": (CLIP_L, "CLIPTextModel")},
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
    ),
    "sd2": Layout(
        "StableDiffusionPipeline",
        {"text_encoder": (CLIP_H, "CLIPTextModel")},
        "stabilityai/stable-diffusion-2-1",
        "stabilityai/stable-diffusion-2-inpainting",
    ),
    "sdxl": Layout(
        "StableDiffusionXLPipeline",
        {
            "text_encoder": (CLIP_L_XL, "CLIPTextModel"),
            "text_encoder_2": (CLIP_G_XL, "CLIPTextModelWithProjection"),
        },
        "stabilityai/stable-diffusion-xl-base-1.0",
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
    ),
    "sdxl-refiner": Layout(
        "StableDiffusionXLImg2ImgPipeline",
        {"text_encoder_2": (CLIP_G_REFINER, "CLIPTextModelWithProjection")},
        "stabilityai/stable-diffusion-xl-refiner-1.0",
    ),
}
SD2_BASE = "stabilityai/stable-diffusion-2-1-base"


@dataclass(frozen=True)
class SingleFile:
    """What the header tells. `config` is the default repository of the configs that are not in the file."""

    family: Family
    pipeline: str
    components: tuple[Component, ...]
    prediction_type: str
    traits: frozenset[str]
    config: str


def recognize(header: Header, name: str) -> SingleFile:
    """What the file `name` is. Raises UnsupportedError for parts, LoRAs and others, with what to do."""
    refuse_part(header, name)
    family = FAMILIES[_family(header.tensors, name)]
    layout = LAYOUTS[family.name]
    channels = _in_channels(header.tensors, name)
    prediction = _prediction(header, family, name)
    traits = {"no-safety-checker"}
    pipeline, config = layout.pipeline, layout.config
    if family.name == "sd2" and prediction == "epsilon":
        config = SD2_BASE
    if channels == 9:
        traits.add("inpainting")
        pipeline, config = INPAINTING.get(pipeline, pipeline), layout.inpainting or config
    if not any(key.startswith(f"{UNET}middle_block.") for key in header.tensors):
        traits.add("student")
    if re.search(r"(?:sd|sd_?xl)_turbo", name.lower().replace("-", "_")):
        traits.add("turbo")
    components = _components(header.tensors, layout, channels, name)
    return SingleFile(family, pipeline, components, prediction, frozenset(traits), config)


def _family(tensors: Mapping[str, Tensor], name: str) -> str:
    for family, prefixes in {
        "sdxl": (CLIP_L_XL, CLIP_G_XL),
        "sdxl-refiner": (CLIP_G_REFINER,),
        "sd2": (CLIP_H,),
        "sd1": (CLIP_L,),
    }.items():
        if all(any(key.startswith(prefix) for key in tensors) for prefix in prefixes):
            return family
    raise UnsupportedError(
        f"{name} has no text encoder that sdhub knows",
        hint="use a full checkpoint of Stable Diffusion 1.x, 2.x or XL, or a diffusers folder",
    )


def _in_channels(tensors: Mapping[str, Tensor], name: str) -> int:
    conv = tensors.get(CONV_IN)
    if conv is None or len(conv.shape) != 4:
        raise SourceError(f"{name} lacks {CONV_IN}", hint="get the file again")
    if conv.shape[1] not in (4, 9):
        raise UnsupportedError(
            f"{name} has a UNet of {conv.shape[1]} input channels, which sdhub does not know",
            hint="text-to-image has 4, inpainting 9",
        )
    return conv.shape[1]


def _prediction(header: Header, family: Family, name: str) -> str:
    """From the metadata or marker tensors; else by the name, since the weights of SD 2.x do not tell."""
    said = header.metadata.get("modelspec.prediction_type", "")
    if said in ("epsilon", "v", "v_prediction"):
        return "epsilon" if said == "epsilon" else "v_prediction"
    if "v_pred" in header.tensors:
        return "v_prediction"
    if family.name != "sd2":
        return "epsilon"
    return "epsilon" if re.search(r"base|512|turbo|inpaint", name.lower()) else "v_prediction"


def _components(tensors: Mapping[str, Tensor], layout: Layout, channels: int, name: str) -> tuple[Component, ...]:
    parts = {"unet": (UNET, "UNet2DConditionModel"), "vae": (VAE, "AutoencoderKL"), **layout.text_encoders}
    found = []
    for part, (prefix, class_name) in parts.items():
        own = {
            key: tensor
            for key, tensor in tensors.items()
            if key.startswith(prefix) and not key.endswith(NOT_PARAMETERS)
        }
        if not own:
            raise UnsupportedError(
                f"{shown(name)} has no {part}", hint="use a full checkpoint, or a diffusers folder"
            )
        library = "transformers" if part.startswith("text_encoder") else "diffusers"
        config = _unet_config(tensors, channels) if part == "unet" else {}
        found.append(Component(part, library, class_name, config, (name,), **measure(own)))
    return tuple(found)


def _unet_config(tensors: Mapping[str, Tensor], channels: int) -> dict[str, int]:
    widths = [tensor.shape[-1] for key, tensor in tensors.items() if CROSS_ATTENTION.fullmatch(key)]
    return {"in_channels": channels, **({"cross_attention_dim": widths[0]} if widths else {})}
