"""From classes and configs to the family, its traits and what the denoiser predicts.

Structure decides: classes, the number of text encoders, the type of the added embedding. Widths only tell apart
what is built alike (SD 1.x and 2.x).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdhub.checkpoint.checkpoint import Component
from sdhub.checkpoint.families import FAMILIES, INPAINTING, PIPELINES, Family
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsupportedError

SD2_WIDTH = 1024
SD1_WIDTH = 768
MAX_SIDE, SIDE_STEP = 4096, 8  # pixels; pipelines draw multiples of the step
LATENT_CHANNELS = 4  # of denoisers and autoencoders that do not say
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")
TRANSFORMERS = {
    "sd3": ("SD3Transformer2DModel",),
    "flux": ("FluxTransformer2DModel",),
    "pixart": ("PixArtTransformer2DModel", "Transformer2DModel"),
    "sana": ("SanaTransformer2DModel",),
    "qwen-image": ("QwenImageTransformer2DModel",),
}
TURBO = re.compile(r"turbo(?![a-z])", re.IGNORECASE)
VERSION = re.compile(r" (\d|XL).*")
TURBO_SCHEDULERS = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")


@dataclass(frozen=True)
class Detected:
    """What a checkpoint is; `pipeline` draws with it, and `notes` say where it calls itself another."""

    pipeline: str
    family: Family
    traits: frozenset[str]
    prediction_type: str
    notes: tuple[str, ...] = ()


def require_known(pipeline: str, where: str) -> None:
    """Raises UnsupportedError for a pipeline class of no known family."""
    if pipeline not in PIPELINES:
        known = ", ".join(dict.fromkeys(VERSION.sub("", family.title) for family in FAMILIES.values()))
        raise UnsupportedError(
            f"{where} is a {shown(pipeline, 60)}, which sdhub does not know",
            hint=f"it takes text-to-image pipelines of {known}",
        )


def detect(pipeline: str, components: Mapping[str, Component], where: str) -> Detected:
    """The family of vetted components by name. Raises SourceError where they do not fit the pipeline."""
    require_known(pipeline, where)
    candidates = PIPELINES[pipeline]
    denoiser = components.get(FAMILIES[candidates[0]].denoiser)
    if denoiser is None:
        raise SourceError(
            f"{where} has no {FAMILIES[candidates[0]].denoiser}", hint="is it a whole checkpoint, not a part?"
        )
    name = _unet_family(denoiser, components) if denoiser.name == "unet" else _transformer_family(denoiser)
    if name not in candidates:
        raise SourceError(
            f"{where} calls itself {pipeline}, but its {denoiser.name} is of another kind",
            hint="correct _class_name in model_index.json, or get the checkpoint again",
        )
    family = FAMILIES[name]
    if denoiser.name == "unet":
        _require_channels(components, where)
    scheduler = components.get("scheduler")
    if scheduler is None:
        raise SourceError(f"{where} has no scheduler", hint="is it a whole checkpoint, not a part?")
    traits = _traits(pipeline, family, components, scheduler)
    notes: tuple[str, ...] = ()
    if "inpainting" in traits and pipeline in INPAINTING:
        notes = (f"It calls itself {pipeline}, and its nine latent channels are those of {INPAINTING[pipeline]}.",)
        pipeline = INPAINTING[pipeline]
    return Detected(pipeline, family, traits, _prediction(scheduler, where), notes)


def _unet_family(unet: Component, components: Mapping[str, Component]) -> str | None:
    config = unet.config
    if unet.class_name != "UNet2DConditionModel":
        return None
    embedding = config.get("addition_embed_type")
    if embedding == "text_time":
        if "text_encoder_2" not in components:
            return None
        return "sdxl" if "text_encoder" in components else "sdxl-refiner"
    if embedding is not None or "text_encoder" not in components or "text_encoder_2" in components:
        return None
    return "sd2" if _looks_like_sd2(config, components["text_encoder"].config) else "sd1"


def _looks_like_sd2(unet: Mapping[str, Any], text_encoder: Mapping[str, Any]) -> bool:
    """By the width 1024; at odd widths by the activation of OpenCLIP's text encoder."""
    width = unet.get("cross_attention_dim")
    width = width[0] if isinstance(width, list) and width else width
    if width in (SD1_WIDTH, SD2_WIDTH):
        return bool(width == SD2_WIDTH)
    return text_encoder.get("hidden_act") == "gelu"


def _transformer_family(transformer: Component) -> str | None:
    found = (name for name, classes in TRANSFORMERS.items() if transformer.class_name in classes)
    return next(found, None)


def _prediction(scheduler: Component, where: str) -> str:
    if scheduler.class_name.startswith("FlowMatch"):
        return "flow_prediction"
    given = scheduler.config.get("prediction_type", "epsilon")
    if given not in PREDICTIONS:
        raise SourceError(
            f"the scheduler of {where} has the prediction_type {shown(given, 30)}",
            hint=f"known are: {', '.join(PREDICTIONS)}",
        )
    return str(given)


def _require_channels(components: Mapping[str, Component], where: str) -> None:
    """Raises UnsupportedError for a UNet that takes something beside latents, or a mask and masked latents."""
    vae = components.get("vae")
    channels = components["unet"].config.get("in_channels", LATENT_CHANNELS)
    latent = (vae.config if vae else {}).get("latent_channels", LATENT_CHANNELS)
    if channels not in (latent, 2 * latent + 1):
        raise UnsupportedError(
            f"the unet of {where} takes {shown(channels, 20)} channels, its VAE makes {shown(latent, 20)}",
            hint="text-to-image takes as many as the VAE makes, inpainting twice as many and a mask",
        )


def _traits(
    pipeline: str, family: Family, components: Mapping[str, Component], scheduler: Component
) -> frozenset[str]:
    config = components[family.denoiser].config
    found = {
        "inpainting": family.denoiser == "unet" and config.get("in_channels", 4) == 9,
        "student": family.denoiser == "unet" and _is_student(config),
        "lcm": pipeline.startswith("LatentConsistency")
        or scheduler.class_name == "LCMScheduler"
        or config.get("time_cond_proj_dim") is not None,
        "no-safety-checker": "safety_checker" not in components,
    }
    return frozenset(name for name, holds in found.items() if holds)


def _is_student(unet: Mapping[str, Any]) -> bool:
    """Blocks removed: no (full) middle block, or the teacher's stages (widths 1 : 2 : 4) with one layer each.

    BK-SDM (Kim et al. 2023, arXiv 2305.15798) and the distilled SDXL of Gupta et al. 2024 (arXiv 2401.02677).
    """
    if unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") != "UNetMidBlock2DCrossAttn":
        return True
    if unet.get("reverse_transformer_layers_per_block") is not None:
        return True
    layers, widths = unet.get("layers_per_block", 2), unet.get("block_out_channels")
    one = layers == 1 or (isinstance(layers, list) and bool(layers) and set(map(str, layers)) == {"1"})
    if not one or not isinstance(widths, list) or len(widths) < 3 or not isinstance(widths[0], int):
        return False
    return widths[1:3] == [2 * widths[0], 4 * widths[0]]


def is_turbo(components: Mapping[str, Component], names: Iterable[str]) -> bool:
    """SD-Turbo, SDXL-Turbo (Sauer et al. 2023) and what was made of them.

    They are sampled by Euler's method with trailing timesteps, and predict noise; but so are others (Lin et al.
    2024, arXiv 2305.08891). One of `names`, its own and its bases', has to say it; of ids the last part counts.
    """
    unet, scheduler = components.get("unet"), components.get("scheduler")
    if unet is None or scheduler is None or not any(TURBO.search(name.rpartition("/")[2]) for name in names):
        return False
    config = scheduler.config
    return (
        scheduler.class_name in TURBO_SCHEDULERS
        and config.get("timestep_spacing") == "trailing"
        and config.get("prediction_type", "epsilon") == "epsilon"
        and not config.get("rescale_betas_zero_snr")
    )


def side_of(components: Mapping[str, Component]) -> int | None:
    """The side in pixels that a UNet was made for: its `sample_size` times the VAE's scale; None where unsaid, or
    where pipelines do not draw it."""
    unet, vae = components.get("unet"), components.get("vae")
    if unet is None or vae is None:
        return None
    latent, widths = unet.config.get("sample_size"), _widths(vae)
    if not isinstance(latent, int) or not isinstance(widths, list) or not 1 <= len(widths) <= 8:
        return None
    side = int(latent * 2 ** (len(widths) - 1))
    return side if SIDE_STEP <= side <= MAX_SIDE and side % SIDE_STEP == 0 else None


def _widths(vae: Component) -> Any:
    """Of an autoencoder's stages; the tiny one has them of each half."""
    return vae.config.get("block_out_channels") or vae.config.get("decoder_block_out_channels")
