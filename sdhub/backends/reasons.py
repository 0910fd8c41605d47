"""Why a checkpoint can have no variant at all, or none of a kind: every component is looked at, JSON alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.schedulers import missing
from sdhub.core.documents import shown

CLIP, PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
KL, TINY = "AutoencoderKL", "AutoencoderTiny"
VAES = (KL, TINY)
# What diffusers' pipelines draw with, by family and component; those of `OPTIONAL` may be left out.
PARTS: Mapping[str, Mapping[str, Collection[str]]] = {
    "sd1": {"text_encoder": (CLIP,), "vae": VAES},
    "sd2": {"text_encoder": (CLIP,), "vae": VAES},
    "sdxl": {"text_encoder": (CLIP, PROJECTED), "text_encoder_2": (PROJECTED,), "vae": VAES},
    "sdxl-refiner": {"text_encoder_2": (PROJECTED,), "vae": VAES},
    "sd3": {
        "text_encoder": (PROJECTED,),
        "text_encoder_2": (PROJECTED,),
        "text_encoder_3": ("T5EncoderModel",),
        "vae": VAES,
    },
    "flux": {"text_encoder": (CLIP,), "text_encoder_2": ("T5EncoderModel",), "vae": VAES},
    "sana": {"text_encoder": ("Gemma2Model",), "vae": ("AutoencoderDC",)},
}
OPTIONAL = frozenset({"text_encoder_3"})
# Settings of a UNet that diffusers' pipelines of Stable Diffusion draw with: they give no other inputs.
DRAWN: Mapping[str, Collection[Any]] = {
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim_type": (None, "text_proj"),
    "dual_cross_attention": (None, False),
}


def reason(checkpoint: Checkpoint) -> str | None:
    """Why no variant can be made of the checkpoint, in one clause; None where nothing stands against it."""
    if not checkpoint.family.buildable:
        return f"{checkpoint.family.title} can be inspected but not built yet"
    return _parts(checkpoint) or _denoiser(checkpoint) or _scheduler(checkpoint)


def unusual(config: Mapping[str, Any], usual: Mapping[str, Collection[Any]]) -> str | None:
    """The first setting of a config that has none of its `usual` values, in words; None where all have."""
    for name, values in usual.items():
        value = config.get(name)
        if value not in values:
            return f"{name} is {shown(str(value), 60)}"
    return None


def _parts(checkpoint: Checkpoint) -> str | None:
    """The first component that is of none of its classes, or is not there."""
    for name, known in PARTS[checkpoint.family.name].items():
        part, wanted = checkpoint.component(name), " or ".join(known)
        if part is None and name not in OPTIONAL:
            return f"it has no {name}, which has to be {wanted}"
        if part is not None and part.class_name not in known:
            return f"its {name} is of class {shown(part.class_name, 60)}, and has to be {wanted}"
    return None


def _denoiser(checkpoint: Checkpoint) -> str | None:
    part = checkpoint.component(checkpoint.family.denoiser)
    if part is None or part.name != "unet":
        return None
    found = unusual(part.config, DRAWN)
    if found is not None:
        return f"{found} in the config of its unet, which {checkpoint.pipeline} does not draw with"
    widths = part.config.get("cross_attention_dim")
    if isinstance(widths, list) and len(set(map(str, widths))) > 1:
        return "the blocks of its unet attend to states of different widths"
    return None


def _scheduler(checkpoint: Checkpoint) -> str | None:
    part = checkpoint.component("scheduler")
    if part is None:
        return None
    package = missing(part)
    if package is not None:
        return f"its scheduler {part.class_name} needs a package that is not installed: pip install {package}"
    if checkpoint.family.denoiser == "unet" and part.class_name.startswith(("FlowMatch", "SCM")):
        return f"its scheduler {part.class_name} is none for a UNet: put EulerDiscreteScheduler in its place"
    return None
