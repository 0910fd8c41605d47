"""Checkpoints made in tests: skeletons of JSON and headers alone, and tiny ones of the true architectures.

What differs in the true ones differs in the tiny ones too (`test_tiny.py`): widths that are alike by chance hide
that one was taken for the other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdhub.demo import emoji_sd

Entry = tuple[str, Sequence[int]]
WIDTH, WIDTH_2, PROJECTION_2 = 16, 24, 20  # of the text encoders, and of what the second one's state becomes
SIZES = {"I8": 1, "U8": 1, "F16": 2, "BF16": 2, "F32": 4, "I64": 8}


def safetensors_bytes(tensors: Mapping[str, Entry], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file of zeros, written by hand."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = SIZES[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(end)


def write(path: Path, content: bytes | str | Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


UNET = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "cross_attention_dim": 768,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "sample_size": 64,
}
VAE = {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512]}
ENTRIES: dict[str, Any] = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
}
WEIGHTS = {
    "diffusers": "diffusion_pytorch_model.safetensors",
    "transformers": "model.safetensors",
}
TENSORS: dict[str, Entry] = {"weight": ("F16", (4, 2)), "bias": ("F32", (3,))}


def skeleton(
    root: Path,
    pipeline: str = "StableDiffusionPipeline",
    entries: Mapping[str, Any] | None = None,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> Path:
    """A diffusers folder with true structure and a few zeros for weights."""
    entries = {**ENTRIES, **(entries or {})}
    entries = {name: entry for name, entry in entries.items() if entry is not None}
    given = {"unet": UNET, "vae": VAE, "text_encoder": {"hidden_act": "quick_gelu"}, **(configs or {})}
    write(root / "model_index.json", {"_class_name": pipeline, **settings, **entries})
    for name, (library, class_name) in entries.items():
        if library is None:
            continue
        config = given.get(name, {})
        if class_name.endswith("Scheduler"):
            write(root / name / "scheduler_config.json", {"_class_name": class_name, **config})
        elif "Tokenizer" in class_name:
            write(root / name / "tokenizer_config.json", config)
            write(root / name / "vocab.json", {"a": 0})
            write(root / name / "merges.txt", "#version: 0.2\n")
        else:
            write(root / name / "config.json", config)
            write(root / name / WEIGHTS.get(library, "model.safetensors"), safetensors_bytes(TENSORS))
    return root


def copy_demo(root: Path) -> Path:
    """The built-in checkpoint as a folder that a test may change."""
    return Path(shutil.copytree(emoji_sd(), root))


def tiny_unet(**changes: Any) -> Any:
    """A UNet of two stages, a few thousand parameters."""
    from diffusers import UNet2DConditionModel

    settings = {
        "sample_size": 8,
        "block_out_channels": (8, 24),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
    }
    return UNet2DConditionModel(**{**settings, **changes})


def tiny_unet_xl(time_ids: int, context: int, **changes: Any) -> Any:
    """A UNet of Stable Diffusion XL: three stages, each deeper than the one before, the first without attention.

    `time_ids`: 6, or 5 of the refiner; `context`: the width of the text encoders' states together.
    """
    settings = {
        "block_out_channels": (12, 36, 72),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (1, 2, 4),  # which diffusers takes for the number of heads
        "use_linear_projection": True,
        "cross_attention_dim": context,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": PROJECTION_2 + 4 * time_ids,
    }
    return tiny_unet(**{**settings, **changes})


def tiny_vae() -> Any:
    """Half as many pixels a side; four channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        layers_per_block=1,
    )


def tiny_text_encoder(*, projection: bool = False, **changes: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    settings = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 2222,
        "projection_dim": WIDTH,
        "bos_token_id": 2220,
        "eos_token_id": 2221,
    }
    config = CLIPTextConfig(**{**settings, **changes})
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def tiny_text_encoder_2(**changes: Any) -> Any:
    """The second text encoder of Stable Diffusion XL: wider, deeper, and with a projection."""
    settings = {
        "hidden_act": "gelu",
        "hidden_size": WIDTH_2,
        "intermediate_size": 4 * WIDTH_2,
        "num_attention_heads": 3,
        "num_hidden_layers": 3,
        "projection_dim": PROJECTION_2,
    }
    return tiny_text_encoder(projection=True, **{**settings, **changes})


def tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(emoji_sd() / "tokenizer")
