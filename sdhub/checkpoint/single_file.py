"""One `.safetensors` file in the original (LDM) layout, told from its header alone.

Layouts: CompVis latent-diffusion and Stability's generative-models, as diffusers' `from_single_file` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sdhub.checkpoint.accounting import EMA, account, is_weight, plain_names
from sdhub.checkpoint.checkpoint import Component
from sdhub.checkpoint.families import FAMILIES, INPAINTING, Family
from sdhub.checkpoint.headers import Header, Tensor
from sdhub.checkpoint.kinds import refuse_part
from sdhub.checkpoint.said import Said, said_by
from sdhub.checkpoint.weights import measure
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsupportedError

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP_L = "cond_stage_model.transformer."
CLIP_H = "cond_stage_model.model."
CLIP_L_XL = "conditioner.embedders.0.transformer."
CLIP_G_XL = "conditioner.embedders.1.model."
CLIP_G_REFINER = "conditioner.embedders.0.model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
CROSS_ATTENTION = re.compile(re.escape(UNET) + r".*\.attn2\.to_k\.weight")
EMA_COUNTERS = ("model_ema.decay", "model_ema.num_updates")
PLAYGROUND = "playgroundai/playground-v2.5-1024px-aesthetic"


@dataclass(frozen=True)
class Layout:
    """Where the parts of a family lie in the file, and the repositories whose configs fit it."""

    pipeline: str
    text_encoders: Mapping[str, tuple[str, str]]
    config: str
    inpainting: str = ""

    @property
    def parts(self) -> Mapping[str, tuple[str, str]]:
        """Prefix and class of each component with weights."""
        return {"unet": (UNET, "UNet2DConditionModel"), "vae": (VAE, "AutoencoderKL"), **self.text_encoders}

    @property
    def prefixes(self) -> Mapping[str, str]:
        """Where the tensors of each component lie."""
        return {name: prefix for name, (prefix, _) in self.parts.items()}


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
    """What the header tells. `config` is the default repository of the configs that are not in the file.

    `prediction_type` is a guess by the name where the file `said` nothing of it.
    """

    family: Family
    pipeline: str
    components: tuple[Component, ...]
    prediction_type: str
    traits: frozenset[str]
    config: str
    said: Said


def recognize(header: Header, name: str) -> SingleFile:
    """What the file `name` is. Raises UnsupportedError for parts, LoRAs and others, with what to do."""
    refuse_part(header, name)
    tensors = plain_names(header.tensors, shown(name))
    family = FAMILIES[_family(tensors, name)]
    layout = LAYOUTS[family.name]
    account(tensors, layout.prefixes.values(), shown(name))
    said = said_by(header, name)
    channels = _in_channels(tensors, name)
    prediction = said.prediction or _guess(family, name)
    pipeline, config = layout.pipeline, layout.config
    if family.name == "sd2" and prediction == "epsilon":
        config = SD2_BASE
    if channels == 9:
        pipeline, config = INPAINTING.get(pipeline, pipeline), layout.inpainting or config
    if said.edm:
        _require_xl(family, said, name)
        config = PLAYGROUND if said.edm == "playground" else config
    components = _components(tensors, layout, channels, name)
    traits = _traits(tensors, channels, name)
    return SingleFile(family, pipeline, components, prediction, traits, config, said)


def _traits(tensors: Mapping[str, Tensor], channels: int, name: str) -> frozenset[str]:
    found = {
        "no-safety-checker": True,
        "inpainting": channels == 9,
        "student": not any(key.startswith(f"{UNET}middle_block.") for key in tensors),
        "turbo": bool(re.search(r"(?:sd|sd_?xl)_turbo", name.lower().replace("-", "_"))),
        "ema": sum(key.startswith(EMA) for key in tensors) > len(EMA_COUNTERS),
    }
    return frozenset(trait for trait, holds in found.items() if holds)


def _require_xl(family: Family, said: Said, name: str) -> None:
    if family.name != "sdxl":
        raise UnsupportedError(
            f"{shown(name)} has the markers of {said.edm} (edm_…), and is {family.title}",
            hint="diffusers draws so with Stable Diffusion XL alone",
        )


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


def _guess(family: Family, name: str) -> str:
    """By the name, since the weights of SD 2.x do not tell."""
    if family.name != "sd2":
        return "epsilon"
    return "epsilon" if re.search(r"base|512|turbo|inpaint", name.lower()) else "v_prediction"


def _components(tensors: Mapping[str, Tensor], layout: Layout, channels: int, name: str) -> tuple[Component, ...]:
    found = []
    for part, (prefix, class_name) in layout.parts.items():
        own = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix) and is_weight(key)}
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
