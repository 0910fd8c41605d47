"""What of a config reaches a library: the arguments that its class has, each with a value that can be.

`arguments.json` holds the arguments of every class of `known.py`, those of the oldest and the newest diffusers and
transformers that sdhub works with together; `values.py` says what each may be. Nothing else of a stranger's config
is written into the folder that a library loads: keys beyond are left out, and told of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sdhub.checkpoint.known import SCHEDULERS
from sdhub.checkpoint.tokens import keep_tokenizer
from sdhub.checkpoint.values import RULES, Kept, impossible, keep
from sdhub.core.documents import shown
from sdhub.core.errors import UnsafeError

VERSION = re.compile(r"\d{1,4}(\.\d{1,6}){1,3}(\.?(dev|rc|post|a|b)\d{1,6})?")
# Who wrote the file, and how: sdhub writes its own.
PROVENANCE = frozenset(
    {"_class_name", "_name_or_path", "architectures", "dtype", "model_type", "torch_dtype", "transformers_version"}
)

# The config of each class of transformers, and what `model_type` calls it.
CONFIGS: Mapping[str, tuple[str, str | None]] = {
    "CLIPFeatureExtractor": ("CLIPImageProcessor", None),
    "CLIPImageProcessor": ("CLIPImageProcessor", None),
    "CLIPTextModel": ("CLIPTextConfig", "clip_text_model"),
    "CLIPTextModelWithProjection": ("CLIPTextConfig", "clip_text_model"),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", "clip_vision_model"),
    "Gemma2Model": ("Gemma2Config", "gemma2"),
    "Qwen2_5_VLForConditionalGeneration": ("Qwen2_5_VLConfig", "qwen2_5_vl"),
    "SiglipImageProcessor": ("SiglipImageProcessor", None),
    "SiglipVisionModel": ("SiglipVisionConfig", "siglip_vision_model"),
    "StableDiffusionSafetyChecker": ("CLIPConfig", "clip"),
    "T5EncoderModel": ("T5Config", "t5"),
}
NESTED: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "CLIPConfig": {
        "text_config": ("CLIPTextConfig", "clip_text_model"),
        "vision_config": ("CLIPVisionConfig", "clip_vision_model"),
    },
    "Qwen2_5_VLConfig": {
        "text_config": ("Qwen2_5_VLTextConfig", "qwen2_5_vl_text"),
        "vision_config": ("Qwen2_5_VLVisionConfig", "qwen2_5_vl"),
    },
}
GROUPS = 32  # of normalization, where a config says nothing


def vet_component(library: str, class_name: str, config: Mapping[str, Any], where: str) -> None:
    """Hold the config of a model, a scheduler or an image processor against what its class takes.

    Raises UnsafeError for a class whose config sdhub does not know, SourceError for a value that cannot be: both
    name `where`, the latter the key.
    """
    keep_component(library, class_name, config, where)


def vet_tokenizer(name: str, document: Mapping[str, Any], where: str) -> None:
    """Hold a file of a tokenizer (`tokenizer_config.json`, …) against what tokenizers take. Raises as above."""
    keep_tokenizer(name, document, where)


def keep_component(library: str, class_name: str, config: Mapping[str, Any], where: str) -> Kept:
    """The part of a config that its class takes. Raises as `vet_component`."""
    if library == "diffusers":
        kind = "scheduler" if class_name in SCHEDULERS else class_name
        kept, left_out = _kept(kind, config, where)
        kept["_class_name"] = class_name
        if "_diffusers_version" in config:
            kept["_diffusers_version"] = _version(config["_diffusers_version"], where)
            left_out.remove("_diffusers_version")
    else:
        kind, model_type = CONFIGS.get(class_name, (class_name, None))
        if kind == "CLIPTextConfig" and config.get("model_type") == "clip" and "text_config" in config:
            config = _object(config["text_config"], "text_config", where)  # as transformers does
        kept, left_out = _kept(kind, config, where)
        for key, (nested, its_type) in NESTED.get(kind, {}).items():
            if config.get(key) is not None:
                inner, beyond = _kept(nested, _object(config[key], key, where), f"{where}: {key}")
                kept[key] = {**inner, "model_type": its_type}
                left_out += [f"{key}.{each}" for each in beyond]
        if model_type:
            kept["model_type"] = model_type
    if kind in RELATIONS:
        RELATIONS[kind](kept, where)
    return Kept(kept, tuple(left_out))


def _kept(kind: str, config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    arguments = _arguments().get(kind)
    if arguments is None:
        raise UnsafeError(
            f"{where}: sdhub does not know the config of {shown(kind, 60)}",
            hint="add its arguments to sdhub/checkpoint/arguments.json",
        )
    rules = {key: RULES[key] for key in arguments if key in RULES}
    found = keep(config, rules, where, {*PROVENANCE, *NESTED.get(kind, ())})
    return dict(found.document), list(found.left_out)


@cache
def _arguments() -> Mapping[str, frozenset[str]]:
    document = json.loads(Path(__file__).with_name("arguments.json").read_text(encoding="utf-8"))
    return {kind: frozenset(keys) for kind, keys in document.items()}


def _version(value: Any, where: str) -> str:
    """A pipeline asks it for outdated settings."""
    if not isinstance(value, str) or VERSION.fullmatch(value) is None:
        raise impossible(where, "_diffusers_version", value, "a version")
    return value


def _object(value: Any, key: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise impossible(where, key, value, "an object")
    return value


def _stages(config: Mapping[str, Any], where: str) -> None:
    """Every block of a U-Net or autoencoder has its width, and groups divide widths."""
    widths = config.get("block_out_channels")
    if widths is None:
        return
    for key in ("down_block_types", "up_block_types"):
        value = config.get(key)
        if isinstance(value, list) and len(value) > len(widths):
            raise impossible(where, key, value, f"one for each of the {len(widths)} block_out_channels")
    groups = config.get("norm_num_groups", GROUPS)
    if groups and any(width % groups for width in widths):
        raise impossible(where, "norm_num_groups", groups, f"a divisor of block_out_channels {shown(widths, 60)}")


def _heads(config: Mapping[str, Any], where: str) -> None:
    """Heads share the width out; several heads share one of keys and values."""
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if "head_dim" not in config and width and heads and width % heads:
        raise impossible(where, "num_attention_heads", heads, f"a divisor of hidden_size {width}")
    shared = config.get("num_key_value_heads")
    if shared and heads and heads % shared:
        raise impossible(where, "num_key_value_heads", shared, f"a divisor of num_attention_heads {heads}")


def _axes(config: Mapping[str, Any], where: str) -> None:
    """Rotary embeddings share the width of a head out, in pairs."""
    axes, width = config.get("axes_dims_rope"), config.get("attention_head_dim", 128)
    if axes is not None and (sum(axes) != width or any(axis % 2 for axis in axes)):
        raise impossible(where, "axes_dims_rope", axes, f"even parts of attention_head_dim {width}")


RELATIONS: Mapping[str, Callable[[Mapping[str, Any], str], None]] = {
    "AutoencoderKL": _stages,
    "CLIPTextConfig": _heads,
    "CLIPVisionConfig": _heads,
    "ControlNetModel": _stages,
    "FluxTransformer2DModel": _axes,
    "Gemma2Config": _heads,
    "QwenImageTransformer2DModel": _axes,
    "UNet2DConditionModel": _stages,
}
