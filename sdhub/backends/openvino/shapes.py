"""Fixed shapes: a picture's size, and token merging, which needs one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdhub.backends.openvino import graph
from sdhub.core.errors import UnsupportedError
from sdhub.core.quiet import quiet

TEXTS = ("input_ids", "attention_mask", "encoder_hidden_states")
UNGUIDED = frozenset({"turbo", "lcm"})  # traits of checkpoints whose denoiser is passed once for each step
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


@dataclass(frozen=True)
class Extent:
    """What shapes are fixed to: `size` (width, height) in pixels, `scale` of them a latent; `batch` pictures at a
    time, 0: any number; `passes` of the denoiser for a picture, 2 with guidance; `tokens` of a text."""

    size: tuple[int, int]
    scale: int
    batch: int = 0
    passes: int = 2
    tokens: int = -1


def fix(folder: Path, extent: Extent) -> None:
    """Give an exported component fixed shapes, (batch, channels, height, width) of pictures and latents."""
    if folder.name not in SCALED and not extent.batch:
        return
    with quiet():
        model = graph.read(folder)
        shapes = {
            each.get_any_name(): _shape(each.get_any_name(), each.get_partial_shape(), folder.name, extent)
            for each in model.inputs
        }
        model.reshape(shapes)
        graph.save(model, folder)


def _shape(name: str, free: Any, part: str, extent: Extent) -> Any:
    """What becomes of one input's shape."""
    if not free.rank.get_length():
        return free
    if name == "timestep":  # one for all rows, as optimum-intel's own `reshape` has it
        if extent.batch:
            free[0] = 1
        return free
    rows = extent.batch * (extent.passes if part == "unet" else 1) or -1
    if SCALED.get(part) == name:
        per = 1 if part == "vae_encoder" else extent.scale
        width, height = (side // per for side in extent.size)
        return [rows, free[1], height, width]
    if extent.batch:
        free[0] = rows
        if name in TEXTS:
            free[1] = extent.tokens
    return free


def keep_fixed(out: Path) -> None:
    """Say in `model_index.json` that shapes are fixed: optimum-intel would otherwise free them when it loads."""
    path = out / "model_index.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["dynamic_shapes"] = False
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
