"""What a safetensors file is that is no checkpoint: a LoRA, a part, a control model, another architecture."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdhub.checkpoint.headers import Header
from sdhub.core.documents import shown
from sdhub.core.errors import UnsupportedError

WHOLE = "use a full checkpoint of Stable Diffusion 1.x, 2.x or XL, or a diffusers folder"
DIFFUSERS = "name its diffusers repository or folder instead"
LYCORIS = re.compile(r"\.(hada_|lokr_|oft_|glora_|lora_mid\b|boft_)|\.(set_weight|on_input|a1|b1)(\.|$)")
LORA = re.compile(
    r"(^|\.)(lora_(A|B|up|down|embedding_A|embedding_B)|lora_linear_layer|lora\.(up|down))(\.|$)"
    r"|_lora\.(up|down)\.|\.(diff|diff_b|w_norm|b_norm)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Kind:
    """`pattern` is searched in tensor names; `what` is said of the file, `hint` what to do."""

    pattern: re.Pattern[str]
    what: str
    hint: str


def _kind(pattern: str, what: str, hint: str = WHOLE) -> Kind:
    return Kind(re.compile(pattern, re.MULTILINE), what, hint)


# In this order: the first that is found decides.
KINDS = (
    Kind(LYCORIS, "a LyCORIS file (LoHa, LoKr, OFT or the like)", "only plain LoRAs can be fused (--lora)"),
    Kind(LORA, "a LoRA", "name the checkpoint it was made for, and the file with --lora"),
    _kind(r"^(control_model\.|controlnet_|input_hint_block\.|zero_convs\.)", "a ControlNet"),
    _kind(r"^(ip_adapter|image_proj)[.]", "an IP-Adapter"),
    _kind(r"(^|\.)joint_blocks\.", "a Stable Diffusion 3.x file", DIFFUSERS),
    _kind(r"(^|\.)(double_blocks|single_transformer_blocks)\.", "a FLUX file", DIFFUSERS),
    _kind(r"^(emb_params|string_to_param|clip_[lg])$", "a textual inversion embedding"),
    _kind(r"^motion_modules?\.|\.motion_modules\.", "a motion module of AnimateDiff"),
)
PARTS = (
    _kind(r"^first_stage_model\.|^(encoder|decoder)\.(down|up|mid|mid_block|conv_in)[._]", "a VAE only"),
    _kind(r"^(model\.diffusion_model\.|input_blocks\.|down_blocks\.)", "a UNet only"),
    _kind(r"^(text_model|transformer\.text_model|cond_stage_model|conditioner)\.", "a text encoder only"),
)
COMPANIONS = ("first_stage_model.", "cond_stage_model.", "conditioner.")


def refuse_part(header: Header, name: str) -> None:
    """Raises UnsupportedError unless the file has a UNet in the original layout and something to go with it."""
    keys = "\n".join(header.tensors)
    for kind in KINDS:
        if kind.pattern.search(keys):
            raise UnsupportedError(f"{shown(name)} is {kind.what}, no checkpoint", hint=kind.hint)
    if _has(header, "model.diffusion_model.") and any(_has(header, prefix) for prefix in COMPANIONS):
        return
    for part in (PARTS[1], PARTS[0], PARTS[2]):
        if part.pattern.search(keys):
            raise UnsupportedError(f"{shown(name)} is {part.what}, no full checkpoint", hint=part.hint)
    raise UnsupportedError(f"{shown(name)} is no checkpoint that sdhub knows", hint=WHOLE)


def _has(header: Header, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in header.tensors)
