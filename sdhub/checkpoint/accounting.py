"""Every tensor of a single file is used, known to be of no use, or named in a refusal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from sdhub.checkpoint import scales
from sdhub.checkpoint.headers import Tensor
from sdhub.checkpoint.said import MARKERS
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsupportedError

# Tensors of training and of samplers, and parameters of CLIP that no picture depends on.
NO_USE = re.compile(
    r"model_ema\..*"
    r"|(log_)?betas|alphas|(log_one_minus_|sqrt_|sqrt_recip_|sqrt_recipm1_|sqrt_one_minus_)?alphas_cumprod(_prev)?"
    r"|posterior_\w+|lvlb_weights|logvar|scale_factor|(denoiser\.)?(log_)?sigmas|global_step|iterations?|epoch"
    r"|model\.(betas|alphas_cumprod|sigmas|log_sigmas)"
    r"|first_stage_model\.(loss|model_ema)\..*"
    r"|(cond_stage_model|conditioner)\..*\b(position_ids|logit_scale|attn_mask)"
    r"|(cond_stage_model|conditioner\.embedders\.0)\.(transformer\.)?(text_projection(\.weight)?)"
)
EMA = "model_ema."
# What stands beside text encoders in the files of whole models, and no picture depends on.
BESIDE = re.compile(
    r"(.*\.)?position_ids|logit_scale|(vision_model|visual_projection|text_projection|decoder|lm_head)\..*"
)
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
NO_TEXT_MODEL = re.compile(
    r"(?P<prefix>(?:cond_stage_model|conditioner\.embedders\.0)\.transformer\.)"
    r"(?P<rest>(?:embeddings|encoder|final_layer_norm)\..+)"
)

Value = TypeVar("Value")


def plain_names(tensors: Mapping[str, Value], where: str) -> dict[str, Value]:
    """By the names of the original layout: old merges lack CLIP's `text_model.`.

    Raises SourceError where one tensor stands under both names.
    """
    named: dict[str, Value] = {}
    for name, value in tensors.items():
        match = NO_TEXT_MODEL.fullmatch(name)
        plain = f"{match['prefix']}text_model.{match['rest']}" if match else name
        if plain in named or (match and plain in tensors):
            raise SourceError(f"{where} holds {shown(plain)} twice", hint="get the file again")
        named[plain] = value
    return named


def is_weight(name: str) -> bool:
    """Whether a tensor of this name in the original layout may be one that pictures are drawn with."""
    return name not in MARKERS and not scales.is_helper(name) and NO_USE.fullmatch(name) is None


def account(tensors: Mapping[str, Tensor], prefixes: Iterable[str], where: str) -> None:
    """Raises UnsupportedError that names the first tensor outside `prefixes` of which sdhub knows no use."""
    used = tuple(prefixes)
    scales.vet({name: tensor for name, tensor in tensors.items() if NO_USE.fullmatch(name) is None}, where)
    for name, tensor in tensors.items():
        marker = tensor.elements <= MARKERS.get(name, -1)
        if not (marker or name.startswith(used) or scales.is_helper(name) or NO_USE.fullmatch(name)):
            raise unknown(name, where)


def unknown(name: str, where: str) -> UnsupportedError:
    """The refusal of a tensor that nothing would be made of."""
    return UnsupportedError(
        f"{where} holds the tensor {shown(name, 120)}, of which sdhub knows no use",
        hint="it will not be left out in silence: use a file without it, or the model's diffusers folder",
    )


def left_over(names: Iterable[str], module: Any) -> str | None:
    """The first of the tensors in a component's own files that its loaded module has no place for, None where all
    arrived."""
    known = set(module.state_dict())
    base = f"{getattr(module, 'base_model_prefix', None) or ''}."
    text = not hasattr(module, "register_to_config")
    for name in names:
        tried = {name, _newer(name), name.removeprefix(base), f"{base}{name}"}
        if not tried & known and not (text and BESIDE.fullmatch(name)):
            return name
    return None


def _newer(name: str) -> str:
    """diffusers' name of an attention layer that older versions wrote otherwise."""
    return ".".join(OLD_ATTENTION.get(each, each) for each in name.split("."))
