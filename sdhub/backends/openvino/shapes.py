"""Fixed shapes: a picture's size, and token merging, which needs one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdhub.backends.openvino import graph
from sdhub.errors import UnsupportedError
from sdhub.quiet import quiet

SCALED = {"unet": "sample", "vae_decoder": "latent_sample", "vae_encoder": "sample"}


def merge_tokens(unet: Any, ratio: float, latent: tuple[int, int]) -> int:
    """Let self-attention at the highest resolution that has any merge `ratio` of its tokens.

    `latent`: (height, width) of the latents. How many attentions do. Raises UnsupportedError where there is none.
    """
    from sdhub.compression.token_merging import MergingAttnProcessor, TokenMerging

    level = next((level for level, block in enumerate(unet.down_blocks) if hasattr(block, "attentions")), None)
    if level is None:
        raise UnsupportedError("this UNet has no self-attention whose tokens could be merged")
    height, width = latent
    for _ in range(level):
        height, width = -(-height // 2), -(-width // 2)
    merging = TokenMerging(height, width, ratio)
    blocks = (f"down_blocks.{level}.", f"up_blocks.{len(unet.up_blocks) - 1 - level}.")
    processors = dict(unet.attn_processors)
    merged = [name for name in processors if name.startswith(blocks) and name.endswith(".attn1.processor")]
    for name in merged:
        processors[name] = MergingAttnProcessor(merging, processors[name])
    unet.set_attn_processor(processors)
    return len(merged)


def set_size(pipeline: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Make (width, height) in pixels the pipeline's own size; (height, width) of its latents."""
    scale = pipeline.vae_scale_factor
    width, height = (side // scale for side in size)
    side: int | list[int] = height if height == width else [height, width]
    pipeline.unet.register_to_config(sample_size=side)
    return height, width


def fix(folder: Path, size: tuple[int, int], scale: int) -> None:
    """Give an exported component the size (width, height), in pixels; the batch stays free."""
    name = SCALED.get(folder.name)
    if name is None:
        return
    per = 1 if folder.name == "vae_encoder" else scale
    width, height = (side // per for side in size)
    with quiet():
        model = graph.read(folder)
        channels = model.input(name).get_partial_shape()[1]
        model.reshape({name: [-1, channels, height, width]})
        graph.save(model, folder)


def keep_fixed(out: Path) -> None:
    """Say in `model_index.json` that shapes are fixed: optimum-intel would otherwise free them when it loads."""
    path = out / "model_index.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["dynamic_shapes"] = False
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
